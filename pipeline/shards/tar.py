"""A strict reader of WebDataset shards: one streaming pass that gives every sample of a sound tar, or raises.

`tarfile`, and WebDataset on top of it, take a tar cut at a member boundary for a complete one, and a damaged header for
the end. This reader accepts an archive only if

- the bytes that came are as many as the object has,
- it ends in zero blocks, and nothing but zeros follows them,
- the checksum of every header holds,
- no key comes back after another key, and no sample has two members of one extension,
- nothing exceeds its limit.

Samples group as in WebDataset: neighbouring members whose path agrees up to the first dot of its last part. Links,
devices and folders are skipped and counted. Names are only ever keys, and nothing is written to disk:
`/etc/passwd.jpg` and `../x.jpg` are keys like any other. gzip and zstd archives are recognised by their magic bytes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ShardError, ShardFault
from pipeline.shards.tar_header import (
    BLOCK_BYTES,
    GNU_LONG_TYPES,
    PAX_GLOBAL_TYPE,
    PAX_TYPES,
    REFUSED_TYPES,
    REGULAR_TYPES,
    Header,
    long_name,
    padding,
    parse_header,
    parse_pax,
)
from pipeline.shards.tar_stream import CHUNK_BYTES, ByteStream, ObjectStream, Window, damage, decompressed

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


class TarLimits(BaseModel):
    """What a shard may ask of the reader's memory and patience; checked before anything is allocated.

    A shard over a limit fails as a whole; tokens never depend on a limit, so they are no part of the fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_member_bytes: int = Field(_GIB, gt=0, description="largest member that is read (bytes)")
    max_sample_bytes: int = Field(2 * _GIB, gt=0, description="all members of one sample with their headers (bytes)")
    max_name_bytes: int = Field(4 * _KIB, gt=0, description="longest name of a member (bytes)")
    max_members: int = Field(10_000_000, gt=0, description="headers of any kind in one archive (count)")
    max_header_bytes: int = Field(_MIB, gt=0, description="one PAX extended header (bytes)")
    max_padding_bytes: int = Field(
        16 * _MIB,
        ge=0,
        description="zeros at the end (bytes); writers pad to 10 KiB, many more were preallocated and never filled",
    )


class Skip(StrEnum):
    """Why a member became part of no sample."""

    LINK = "link"
    DEVICE = "device"
    FOLDER = "folder"
    FIFO = "fifo"
    OTHER_TYPE = "other_type"  # volume labels, dump folders and whatever vendors invented
    DUNDER = "dunder"  # `__x__` or in such a folder: WebDataset's own records
    NO_EXTENSION = "no_extension"  # no dot in the basename, or nothing before it


class TarWarning(StrEnum):
    """Deviations that lose nothing and are accepted."""

    MISSING_END_MARKER = "missing_end_marker"  # some writers omit it; accepted only if the length is known and right
    LONE_END_BLOCK = "lone_end_block"  # one zero block instead of two


_SKIPPED_TYPES = {
    b"1": Skip.LINK,
    b"2": Skip.LINK,
    b"3": Skip.DEVICE,
    b"4": Skip.DEVICE,
    b"5": Skip.FOLDER,
    b"6": Skip.FIFO,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of an archive that share a key.

    Attributes:
        key: path up to the first dot of its last part. Bytes that are not UTF-8 come as surrogate escapes (PEP 383).
        index: position among the archive's samples, from 0.
        members: extension, in lower case and without its leading dot (`jpg`, `seg.png`) -> content.
    """

    key: str
    index: int
    members: dict[str, bytes]


@dataclass(slots=True)
class TarStats:
    """What was met in one archive.

    Attributes:
        samples: samples given out.
        members: members they are made of.
        bytes_read: bytes of the object, compressed as it is.
        skipped: members that belong to no sample, by reason.
        warnings: accepted deviations, by kind.
    """

    samples: int = 0
    members: int = 0
    bytes_read: int = 0
    skipped: Counter[Skip] = field(default_factory=Counter)
    warnings: Counter[TarWarning] = field(default_factory=Counter)


def split_name(name: str) -> tuple[str, str] | Skip:
    """(key, extension) of a member's name, or why it has none.

    The rule of WebDataset 1.0 (`base_plus_ext`), except that a line break is a character like any other here; there it
    may lose the member.
    Of a dot-file in a folder whose name has no dot, the folder is the key: `dir/.x.jpg` is (`dir/`, `x.jpg`).
    """
    if name.startswith("__"):
        top = name.partition("/")[0]
        if len(top) >= 4 and top.endswith("__"):
            return Skip.DUNDER
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    if dot < 0:
        return Skip.NO_EXTENSION
    if dot == base:
        folder = name[name.rfind("/", 0, max(base - 1, 0)) + 1 : base]
        if not folder or "." in folder:
            return Skip.NO_EXTENSION
    return name[:dot], name[dot + 1 :].lower()


class TarReader:
    """Reads the samples of one shard, once, in order.

    Memory: one chunk of the stream, one sample, and about 100 bytes for each key seen. A key is remembered by its
    64-bit hash: two keys that share one would be taken for a repeat, with a chance of 3e-12 in a shard of 10,000
    samples. That refuses a sound shard, and loses nothing unseen.

    A sample that was given out says nothing about the archive: the shard is accepted only when the iteration ends
    without an error. The last sample is held back until then.

    Attributes:
        stats: what has been met so far.
    """

    def __init__(self, stream: ByteStream, *, url: str, size: int | None, limits: TarLimits | None = None) -> None:
        """Read nothing yet.

        Args:
            stream: gives the object's bytes from its start; reads may be short. Its errors pass through unchanged.
            url: the object's name in messages, without credentials.
            size: the object's length (bytes), None if unknown.
            limits: caps on what the archive may contain.
        """
        self.stats = TarStats()
        self._limits = limits or TarLimits()
        self._object = ObjectStream(stream, url=url, size=size)
        self._archive: ByteStream = self._object
        self._window = Window(self._archive)
        self._started = False
        self._headers = 0
        self._header_at = 0
        self._globals: dict[bytes, bytes] = {}
        self._keys: set[int] = set()

    def __iter__(self) -> Iterator[Sample]:
        """Give out the samples in the archive's order.

        Raises:
            ShardError: if the archive is damaged or over a limit; the message names the URL, the byte offset, what was
                found there and what to do. Samples given out before belong to no sound shard then.
            RuntimeError: on a second iteration.
        """
        if self._started:
            raise RuntimeError(f"a TarReader reads its stream once, got a second iteration over {self._object.url}")
        self._started = True
        try:
            self._archive = decompressed(self._object)
            self._window = Window(self._archive)
            yield from self._samples()
        finally:
            self.stats.bytes_read = self._object.bytes_read

    def _samples(self) -> Iterator[Sample]:
        key, members, held = None, dict[str, bytes](), 0
        for member_key, extension, content in self._members():
            if member_key != key:
                if key is not None:
                    yield self._sample(key, members)
                self._remember(member_key)
                key, members, held = member_key, {}, 0
            elif extension in members:
                raise self._damage(ShardFault.DUPLICATE_MEMBER, f"a second member {extension!r} of sample {key!r}")
            members[extension] = content
            held += BLOCK_BYTES + len(extension) + len(content)
            if held > self._limits.max_sample_bytes:
                raise self._over("max_sample_bytes", f"sample {key!r} takes {held:,} bytes or more")
        if key is not None:
            yield self._sample(key, members)

    def _sample(self, key: str, members: dict[str, bytes]) -> Sample:
        sample = Sample(key, self.stats.samples, members)
        self.stats.samples += 1
        self.stats.members += len(members)
        self.stats.bytes_read = self._object.bytes_read
        return sample

    def _remember(self, key: str) -> None:
        hashed = hash(key)
        if hashed in self._keys:
            raise self._damage(ShardFault.DUPLICATE_KEY, f"key {key!r} comes again after members of other keys")
        self._keys.add(hashed)

    def _members(self) -> Iterator[tuple[str, str, bytes]]:
        """(key, extension, content) of every member that belongs to a sample, until the archive has ended soundly."""
        while (header := self._next_header()) is not None:
            skip = _SKIPPED_TYPES.get(header.type)
            if skip is not None:
                self.stats.skipped[skip] += 1  # no content follows, whatever its size field says
                continue
            regular = header.type in REGULAR_TYPES
            name = split_name(header.name.decode("utf-8", "surrogateescape")) if regular else Skip.OTHER_TYPE
            if isinstance(name, Skip):
                self.stats.skipped[name] += 1
                if not self._window.skip(header.size + padding(header.size)):
                    raise self._cut(header)
            else:
                yield *name, self._content(header, self._limits.max_member_bytes, "max_member_bytes")

    def _next_header(self) -> Header | None:
        """The next member's header with its extended headers applied; None after a sound end."""
        extended: dict[bytes, bytes] | None = None
        while True:
            self._header_at = self._window.offset
            block = self._window.take(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES or block == _ZERO_BLOCK:
                self._check_end(block, expects_member=extended is not None)
                return None
            header = self._parse(block)
            if header.type in PAX_TYPES:
                extended = (extended or {}) | self._pax_records(header)
            elif header.type == PAX_GLOBAL_TYPE:
                self._globals |= self._pax_records(header)
            elif header.type in GNU_LONG_TYPES:
                content = self._content(header, self._limits.max_name_bytes + 1, "max_name_bytes")  # ends in a NUL
                extended = (extended or {}) | long_name(header, content)
            else:
                return self._extend(header, self._globals | extended if extended else self._globals)

    def _parse(self, block: bytes) -> Header:
        self._headers += 1
        if self._headers > self._limits.max_members:
            raise self._over("max_members", f"header number {self._headers:,}")
        try:
            return parse_header(block)
        except ValueError as exc:
            if self._header_at == 0 and block[257:262] != b"ustar":
                raise self._no_tar(block) from exc
            raise self._damage(ShardFault.BAD_HEADER, f"no sound header ({exc})") from exc

    def _extend(self, header: Header, records: dict[bytes, bytes]) -> Header:
        """The member's header with what its extended headers say instead; an empty record says nothing (POSIX)."""
        name, size, type_ = header
        if records:
            name = records.get(b"path", b"").rstrip(b"/") or name
            size = int(records.get(b"size") or size)
        if len(name) > self._limits.max_name_bytes:
            raise self._over("max_name_bytes", f"a name of {len(name):,} bytes")
        if type_ in REFUSED_TYPES:
            found = f"member {name!r} is {REFUSED_TYPES[type_]}, which is not supported"
            raise self._damage(ShardFault.BAD_HEADER, found)
        return Header(name, size, type_)

    def _pax_records(self, header: Header) -> dict[bytes, bytes]:
        data = self._content(header, self._limits.max_header_bytes, "max_header_bytes")
        try:
            return parse_pax(data)
        except ValueError as exc:
            raise self._damage(ShardFault.BAD_HEADER, f"a bad extended header ({exc})") from exc

    def _content(self, header: Header, limit: int, limit_name: str) -> bytes:
        if header.size > limit:
            raise self._over(limit_name, f"a content of {header.size:,} bytes under the name {header.name!r}")
        content = self._window.take(header.size)
        if len(content) < header.size or not self._window.skip(padding(header.size)):
            raise self._cut(header)
        return content

    def _check_end(self, block: bytes, *, expects_member: bool) -> None:
        """Whether the archive may end where no header was found: in a zero block, a partial block or nothing at all."""
        if len(block) == BLOCK_BYTES and not expects_member:
            self._check_padding()
        elif len(block) == BLOCK_BYTES:
            raise self._damage(ShardFault.BAD_HEADER, "an end marker where an extended header announces a member")
        elif self._header_at == 0:
            raise self._no_tar(block) if block else self._damage(ShardFault.EMPTY, "no bytes")
        elif block or expects_member:
            raise self._damage(ShardFault.TRUNCATED, f"{len(block)} bytes of a header, then the end of the data")
        elif self._object.size is None:
            found = "neither a header nor an end marker, and no known length to hold the archive against"
            raise self._damage(ShardFault.TRUNCATED, found)
        else:
            self.stats.warnings[TarWarning.MISSING_END_MARKER] += 1

    def _check_padding(self) -> None:
        zeros = BLOCK_BYTES
        while chunk := self._window.take(CHUNK_BYTES):
            data = chunk.lstrip(b"\0")
            if data:
                self._header_at = self._window.offset - len(data)
                raise self._damage(ShardFault.TRAILING_DATA, f"{data[:24]!r} after the end marker")
            zeros += len(chunk)
            if zeros > self._limits.max_padding_bytes:
                raise self._over("max_padding_bytes", f"{zeros:,} zeros or more")
        if zeros < 2 * BLOCK_BYTES:
            self.stats.warnings[TarWarning.LONE_END_BLOCK] += 1

    def _no_tar(self, block: bytes) -> ShardError:
        return self._damage(ShardFault.NOT_A_TAR, f"no tar header but {block[:24]!r}")

    def _cut(self, header: Header) -> ShardError:
        found = f"a content of {header.size:,} bytes under the name {header.name!r}, which the data ends before"
        return self._damage(ShardFault.TRUNCATED, found)

    def _over(self, limit: str, found: str) -> ShardError:
        return self._damage(ShardFault.LIMIT_EXCEEDED, f"{found}, over tar.{limit}={getattr(self._limits, limit):,}")

    def _damage(self, fault: ShardFault, found: str) -> ShardError:
        archive = "" if self._archive is self._object else " of the decompressed archive"
        return damage(fault, self._object.url, f"at byte {self._header_at:,}{archive}: {found}")
