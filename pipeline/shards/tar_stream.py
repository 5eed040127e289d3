"""The bytes of a tar on their way in: counted against the object's length, decompressed, cut into exact pieces.

    store -> ObjectStream (counts) -> [GzipStream | ZstdStream] -> Window (exact pieces) -> tar.TarReader

Nothing here holds more than one chunk of input and one of output, whatever the compression ratio.
"""

import zlib
from typing import Protocol

import pyarrow as pa

from pipeline.errors import ShardError, ShardFault

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # bytes 1-3 after 0x50-0x5f; parallel compressors write such a frame first
MAGIC_BYTES = 4

CHUNK_BYTES = 1 << 20  # fits the second-level cache, so that the copy of a payload out of it is nearly free
COMPRESSED_CHUNK_BYTES = 1 << 16  # zlib copies what it has not consumed yet after every bounded step

ADVICE = {
    ShardFault.EMPTY: "make or copy the shard again",
    ShardFault.NOT_A_TAR: "look at the object: it may be an error page, or packed by other means than gzip and zstd",
    ShardFault.BAD_HEADER: "the archive is damaged or of an unsupported kind: make or copy the shard again",
    ShardFault.TRUNCATED: "its writer was interrupted or its upload cut: make or copy the shard again",
    ShardFault.WRONG_LENGTH: "if a retry meets it too, the object has changed: list the shards anew",
    ShardFault.TRAILING_DATA: "a header was zeroed, or archives were concatenated: make or copy the shard again",
    ShardFault.DUPLICATE_KEY: "members of one sample must be neighbours: write the archive sorted by name",
    ShardFault.DUPLICATE_MEMBER: "a sample takes one member of each extension (in any case): rename one of the two",
    ShardFault.LIMIT_EXCEEDED: "raise the limit if the archive is meant to be so",
    ShardFault.BAD_COMPRESSION: "the compressed stream is damaged: make or copy the shard again",
}


def damage(fault: ShardFault, url: str, found: str) -> ShardError:
    """The error of one damaged object: where, what was found there, what to do."""
    return ShardError(fault, f"{url}: {found}; {ADVICE[fault]}")


class ByteStream(Protocol):
    """Anything that gives its bytes in order."""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes, `b""` at the end only."""


class ObjectStream:
    """The object as the store sends it; holds what arrived against the object's length.

    Attributes:
        url: name of the object in messages.
        size: its length in bytes, None if unknown.
        bytes_read: how many bytes the store has sent so far.
    """

    def __init__(self, stream: ByteStream, *, url: str, size: int | None) -> None:
        self.url = url
        self.size = size
        self.bytes_read = 0
        self._stream = stream
        self._peeked = b""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes, `b""` at the end only.

        Raises:
            ShardError: WRONG_LENGTH as soon as the stream is seen to be longer or shorter than the object.
        """
        if self._peeked:
            data, self._peeked = self._peeked[:n], self._peeked[n:]
            return data
        data = self._stream.read(n)
        self.bytes_read += len(data)
        if self.size is not None and (self.bytes_read > self.size or (not data and self.bytes_read < self.size)):
            end = f"goes on after byte {self.size:,}" if data else f"ends at byte {self.bytes_read:,}"
            found = f"the data {end}, the object must have {self.size:,} bytes"
            raise damage(ShardFault.WRONG_LENGTH, self.url, found)
        return data

    def peek(self, n: int) -> bytes:
        """The first `n` bytes (fewer if the object is shorter), which `read` will return again."""
        start = b""
        while len(start) < n and (data := self.read(CHUNK_BYTES)):  # a whole chunk: a tiny read costs a request too
            start += data
        self._peeked = start
        return start[:n]


class GzipStream:
    """A gzip file (RFC 1952) of one or several members, decompressed; every member's CRC-32 is checked."""

    def __init__(self, source: ObjectStream) -> None:
        self._source = source
        self._inflate = self._new_member()
        self._compressed = b""

    @staticmethod
    def _new_member() -> "zlib._Decompress":
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)  # 16: a gzip header and trailer around the deflate stream

    def read(self, n: int, /) -> bytes:
        """At most `n` decompressed bytes, `b""` at the end only.

        Raises:
            ShardError: BAD_COMPRESSION, TRUNCATED, TRAILING_DATA (bytes after the last member that are not zeros).
        """
        while not self._inflate.eof or self._next_member():
            compressed = self._compressed or self._source.read(COMPRESSED_CHUNK_BYTES)
            try:
                data = self._inflate.decompress(compressed, n)
            except zlib.error as exc:
                found = f"bad gzip data before byte {self._source.bytes_read:,} of the object ({exc})"
                raise damage(ShardFault.BAD_COMPRESSION, self._source.url, found) from exc
            self._compressed = self._inflate.unconsumed_tail or self._inflate.unused_data
            if data:
                return data
            if not compressed and not self._inflate.eof:
                found = f"the gzip stream is cut at byte {self._source.bytes_read:,} of the object"
                raise damage(ShardFault.TRUNCATED, self._source.url, found)
        return b""

    def _next_member(self) -> bool:
        """Start the next gzip member; False at the end of the object. Zeros between members are padding."""
        rest = self._compressed.lstrip(b"\0")
        while not rest and (chunk := self._source.read(COMPRESSED_CHUNK_BYTES)):
            rest = chunk.lstrip(b"\0")
        if rest and rest[0] != GZIP_MAGIC[0]:
            found = f"{rest[:16]!r} after the gzip stream, before byte {self._source.bytes_read:,} of the object"
            raise damage(ShardFault.TRAILING_DATA, self._source.url, found)
        self._compressed = rest
        if rest:
            self._inflate = self._new_member()
        return bool(rest)


class ZstdStream:
    """A zstd file (RFC 8878) of one or several frames, decompressed; checksums are checked in frames that have one."""

    def __init__(self, source: ObjectStream) -> None:
        self._source = source
        self._file = _PyarrowFile(source)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), "zstd")

    def read(self, n: int, /) -> bytes:
        """At most `n` decompressed bytes, `b""` at the end only.

        Raises:
            ShardError: BAD_COMPRESSION, TRUNCATED.
        """
        try:
            data: bytes = self._stream.read(n)
        except OSError as exc:
            if exc is self._file.error:
                raise
            fault = ShardFault.TRUNCATED if "truncated" in str(exc).lower() else ShardFault.BAD_COMPRESSION
            found = f"bad zstd data before byte {self._source.bytes_read:,} of the object ({exc})"
            raise damage(fault, self._source.url, found) from exc
        finally:
            self._file.error = None  # its traceback holds this stream, and with it the decompressor's buffers
        return data


class _PyarrowFile:
    """What pyarrow asks of a Python file. It keeps the transport's error: pyarrow's own is an OSError as well."""

    closed = False

    def __init__(self, source: ObjectStream) -> None:
        self.error: Exception | None = None
        self._source = source

    def read(self, n: int) -> bytes:
        try:
            return self._source.read(n)
        except Exception as exc:
            self.error = exc
            raise

    def close(self) -> None:
        """Nothing: the stream belongs to who opened it."""


def decompressed(source: ObjectStream) -> ByteStream:
    """The archive inside `source`, by its magic bytes alone: names lie about compression."""
    magic = source.peek(MAGIC_BYTES)
    if magic.startswith(GZIP_MAGIC):
        return GzipStream(source)
    if magic == ZSTD_MAGIC or (magic[1:] == ZSTD_SKIPPABLE_MAGIC and magic[0] >> 4 == 0x5):
        return ZstdStream(source)
    return source


class Window:
    """Takes exact pieces out of a stream that comes in chunks, and knows the offset of each.

    Attributes:
        offset: position of the next byte in the (decompressed) archive.
    """

    def __init__(self, source: ByteStream) -> None:
        self._source = source
        self._chunk = b""
        self._at = 0
        self._passed = 0

    @property
    def offset(self) -> int:
        return self._passed + self._at

    def take(self, n: int) -> bytes:
        """The next `n` bytes; fewer only where the stream ends. Memory grows with what arrives, not with `n`."""
        start, end = self._at, self._at + n
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[start:end]
        pieces = []
        while n > 0 and (piece := self._piece(n)):
            pieces.append(piece)
            n -= len(piece)
        return b"".join(pieces)

    def skip(self, n: int) -> bool:
        """Pass over `n` bytes; False if the stream ended before."""
        if self._at + n <= len(self._chunk):
            self._at += n
            return True
        while n > 0 and (piece := self._piece(n)):
            n -= len(piece)
        return n == 0

    def _piece(self, n: int) -> bytes:
        """At least one and at most `n` of the next bytes, `b""` at the end."""
        if self._at == len(self._chunk):
            self._passed += self._at
            self._chunk, self._at = self._source.read(CHUNK_BYTES), 0
        piece = self._chunk[self._at : self._at + n]
        self._at += len(piece)
        return piece
