"""What a part and a source shard really hold, read by other code than the run's.

Parquet is read by pyarrow straight, tar by the standard library's `tarfile`; neither the strict reader nor the writer
is used. Every byte of a part is read, and page checksums are checked where the part has them. Memory: `SPOOL_BYTES`
of a part (the rest waits on disk), one batch of its rows, and the keys of one shard.
"""

import base64
import gzip
import io
import itertools
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from pipeline.errors import ShardError, ShardFault, Stage, TokenmillError
from pipeline.storage import Blob, ByteStream, Storage

FOOTER_KEY = b"tokenmill"
SCHEMA = 1  # version of rows and footer that is read here
SPOOL_BYTES = 32 << 20
CHUNK_BYTES = 1 << 20
BATCH_ROWS = 1024  # 4 M tokens at 4,096 a row
MAX_REJECTS_BYTES = 1 << 30  # a damaged footer must not ask for all memory
RESTORE = "restore the object"
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")  # a frame, or one to be skipped: pzstd begins so
GNU = b"ustar  \0"  # where a ustar header has its magic and version

COLUMNS = {
    "key": pa.string(),
    "shard": pa.dictionary(pa.int32(), pa.string()),
    "sample_index": pa.uint32(),
    "view": pa.uint8(),
    "grid_height": pa.uint16(),
    "grid_width": pa.uint16(),
    "height": pa.uint32(),
    "width": pa.uint32(),
    "crop": pa.list_(pa.float32(), 4),
    "flip": pa.bool_(),
}
OPTIONAL = {"caption": pa.string(), "label": pa.int64(), "meta": pa.string()}

Count = Annotated[int, Field(ge=0, lt=1 << 32)]
Integers = npt.NDArray[np.int64]


class PartDamaged(Exception):
    """A file under tokens/ cannot be read as a part; the text says why."""


# --- parts -----------------------------------------------------------------------------------------------------------


class Spec(BaseModel):
    """What the tokens of a run look like."""

    model_config = ConfigDict(frozen=True)

    codebook_size: PositiveInt
    grid_height: NonNegativeInt
    grid_width: NonNegativeInt

    @property
    def varies(self) -> bool:
        """Whether every row has a grid of its own: said as 0 x 0."""
        return self.grid_height == self.grid_width == 0


class Source(BaseModel):
    """The shard that a part says it was made of; `size` in bytes."""

    id: str
    url: str
    size: NonNegativeInt
    etag: str | None


class Counts(BaseModel):
    """What the writer counted."""

    model_config = ConfigDict(frozen=True)

    samples: Count
    tokenized: Count
    rows: Count
    rejects: Count
    filtered: Count = 0


class Footer(BaseModel):
    """The JSON document in a part's key-value metadata."""

    version: int = Field(alias="schema")
    fingerprint: str
    shard: Source
    spec: Spec
    counts: Counts
    rejects: str
    rejects_bytes: NonNegativeInt = Field(le=MAX_REJECTS_BYTES)
    filtered: str = ""
    filtered_bytes: NonNegativeInt = Field(0, le=MAX_REJECTS_BYTES)


class Rejected(NamedTuple):
    """A reject as a footer has it."""

    key: str
    sample_index: Count
    stage: Stage
    reason: str
    detail: str


REJECTS = TypeAdapter(list[Rejected])
FILTERED = TypeAdapter(dict[str, list[Count]])


@dataclass(frozen=True, slots=True)
class Rows:
    """What is compared of a part's rows.

    Attributes:
        keys: string array [rows].
        index: `sample_index` [rows].
        view: [rows].
        wrong_shard: sample indices of the rows whose column `shard` is not the footer's URL.
        wrong_grid: of the rows whose grid is not the footer's; where it varies, not the length of their tokens.
        wrong_tokens: of the rows with a token outside [0, codebook_size).
    """

    keys: pa.Array
    index: Integers
    view: Integers
    wrong_shard: Integers
    wrong_grid: Integers
    wrong_tokens: Integers


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it was read; `filtered` are the sample indices that its footer says were not wanted."""

    footer: Footer
    rejects: list[Rejected]
    filtered: Integers
    rows: Rows


def read_part(storage: Storage, blob: Blob) -> Part:
    """Read a part whole.

    Raises:
        PartDamaged: it is no Parquet file, no part, or its bytes are damaged.
        ShardError: it was deleted or replaced since it was listed.
        StorageError: the store did not answer.
    """
    with SpooledTemporaryFile(max_size=SPOOL_BYTES) as file:
        with storage.stream(blob) as stream:
            shutil.copyfileobj(cast("IO[bytes]", stream), file, CHUNK_BYTES)
        file.seek(0)
        try:
            return _part(pq.ParquetFile(file, page_checksum_verification=True))
        except PartDamaged:
            raise
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            raise PartDamaged(f"its footer is wrong: {faults}") from error
        except Exception as error:  # whatever damaged bytes make a parser raise, the part is what is wrong
            raise PartDamaged(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _part(file: pq.ParquetFile) -> Part:
    document = (file.metadata.metadata or {}).get(FOOTER_KEY)
    if document is None:
        raise PartDamaged("it is a Parquet file without a tokenmill footer")
    footer = Footer.model_validate_json(document)
    if footer.version != SCHEMA:
        raise PartDamaged(f"its schema must be {SCHEMA}, got {footer.version}; was it written by another version?")
    _check_columns(file.schema_arrow, footer.spec)
    rows = _joined([_rows(batch, footer) for batch in file.iter_batches(BATCH_ROWS)])
    return Part(footer, _rejects(footer), _filtered(footer), rows)


def _check_columns(schema: pa.Schema, spec: Spec) -> None:
    """Hold the columns to the documented schema; there may be others besides."""
    code = pa.uint16() if spec.codebook_size <= 1 << 16 else pa.uint32()
    tokens = pa.list_(code) if spec.varies else pa.list_(code, spec.grid_height * spec.grid_width)
    for name, kind in {**COLUMNS, "tokens": tokens, **OPTIONAL}.items():
        if name not in schema.names:
            if name not in OPTIONAL:
                raise PartDamaged(f"it has no column {name}")
        elif schema.field(name).type != kind:
            raise PartDamaged(f"its column {name} must be {kind}, got {schema.field(name).type}")


def _rows(batch: pa.RecordBatch, footer: Footer) -> Rows:
    if empty := [name for name in (*COLUMNS, "tokens") if batch.column(name).null_count]:
        raise PartDamaged(f"no value may be null in {', '.join(empty)}")
    names = ("sample_index", "view", "grid_height", "grid_width")
    index, view, height, width = (_numbers(batch.column(name)).astype(np.int64) for name in names)
    off_grid = (height != footer.spec.grid_height) | (width != footer.spec.grid_width)
    if footer.spec.varies:
        off_grid = (height * width != _numbers(pc.list_value_length(batch.column("tokens")))) | (height * width == 0)
    elsewhere = ~_numbers(pc.equal(batch.column("shard").cast(pa.string()), footer.shard.url))
    return Rows(
        keys=batch.column("key"),
        index=index,
        view=view,
        wrong_shard=index[elsewhere],
        wrong_grid=index[off_grid],
        wrong_tokens=index[_outside(batch.column("tokens"), footer.spec.codebook_size)],
    )


def _outside(tokens: pa.Array, codebook_size: int) -> Integers:
    """Numbers of the lists that hold a value outside [0, codebook_size)."""
    outside = _numbers(tokens.flatten()) >= codebook_size  # they are unsigned
    if not outside.any():
        return np.empty(0, np.int64)
    return np.unique(_numbers(pc.list_parent_indices(tokens))[outside])


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    if array.null_count:
        raise PartDamaged("no token may be null")
    return cast("npt.NDArray[Any]", array.to_numpy(zero_copy_only=False))


def _joined(batches: list[Rows]) -> Rows:
    none = np.empty(0, np.int64)
    batches = [Rows(pa.array([], pa.string()), none, none, none, none, none), *batches]
    numbers = ("index", "view", "wrong_shard", "wrong_grid", "wrong_tokens")
    return Rows(
        keys=pa.concat_arrays([batch.keys for batch in batches]),
        **{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in numbers},
    )


def _rejects(footer: Footer) -> list[Rejected]:
    return REJECTS.validate_json(_unpacked(footer.rejects, footer.rejects_bytes)) if footer.rejects else []


def _filtered(footer: Footer) -> Integers:
    if not footer.filtered:
        return np.empty(0, np.int64)
    by_rule = FILTERED.validate_json(_unpacked(footer.filtered, footer.filtered_bytes))
    return np.array([index for indices in by_rule.values() for index in indices], np.int64)


def _unpacked(text: str, size: int) -> bytes:
    """JSON of `size` bytes from zstd in base64."""
    document: bytes = pa.decompress(base64.b64decode(text, validate=True), size, codec="zstd", asbytes=True)
    return document


# --- source shards ---------------------------------------------------------------------------------------------------


def source_keys(storage: Storage, blob: Blob) -> list[str]:
    """The keys of a shard's samples in tar order, as WebDataset groups them.

    Bytes of a name that are not UTF-8 become U+FFFD, as a Parquet string needs it.

    Raises:
        ShardError: the object is missing or changed, or no whole tar.
        StorageError: the store did not answer.
    """
    with storage.stream(blob) as stream:
        try:
            return list(_keys(_decompressed(stream).read))
        except TokenmillError:
            raise
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise ShardError(ShardFault.BAD_COMPRESSION, f"damaged compression: {error}; {RESTORE}") from error
        except Exception as error:  # whatever damaged bytes make `tarfile` raise
            raise ShardError(
                ShardFault.BAD_HEADER, f"not a whole tar: {type(error).__name__}: {error}; {RESTORE}"
            ) from error


def _keys(read: Callable[[int], bytes]) -> Iterator[str]:
    source = _Forward(read)
    archive = tarfile.TarFile(fileobj=cast("IO[bytes]", source), encoding="utf-8", errors="surrogateescape")
    last = None
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every member it has seen
        key = _key(_name(member, source.last)) if member.isreg() else None
        if key is not None and key != last:
            yield key.encode(errors="surrogateescape").decode(errors="backslashreplace")
            last = key
    rest = iter(lambda: source.read(CHUNK_BYTES), b"")
    if any(chunk.strip(b"\0") for chunk in itertools.chain([source.last], rest)):
        raise ShardError(
            ShardFault.TRAILING_DATA,
            f"byte {archive.offset:,} of the tar begins neither a whole header nor the end of the archive; {RESTORE}",
        )


def _name(member: tarfile.TarInfo, header: bytes) -> str:
    """The name of a member whose header was just read.

    Where ustar has the folders of a long name, GNU tar keeps times (`--incremental`); `tarfile` takes them for folders.
    """
    name, times = (
        field.partition(b"\0")[0].decode(errors="surrogateescape") for field in (header[:100], header[345:500])
    )
    return name if header[257:265] == GNU and member.name == f"{times}/{name}" else member.name


def _key(name: str) -> str | None:
    """The key of a member, None if it belongs to no sample.

    The rule is WebDataset's (`webdataset.tariterators`): folders and the base name up to its first dot, which must not
    be its first character; names like `__this__` are its own.
    """
    found = re.fullmatch(r"((?:.*/)?[^.]+)\.[^/]*", name)
    if found is None or re.match(r"__[^/]*__($|/)", name):
        return None
    return found[1]


def _decompressed(stream: ByteStream) -> Any:
    """A file of the tar's own bytes: gzip and zstd are recognised by their magic."""
    raw = io.BufferedReader(_Raw(stream), CHUNK_BYTES)
    magic = raw.peek(4)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if ZSTD.match(magic):
        return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return raw


class _Raw(io.RawIOBase):
    """A stream of bytes as Python's own classes of files need it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Forward:
    """What `tarfile` needs of a file, over bytes that come only once.

    Attributes:
        last: what was read last. `tarfile` takes a damaged or cut header for the end; here the two can be told apart.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._at = read, 0
        self.last = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (piece := self._read(size - len(data))):
            data += piece
        self._at += len(data)
        self.last = bytes(data)
        return self.last

    def seek(self, position: int) -> int:
        while self._at < position and self.read(min(CHUNK_BYTES, position - self._at)):
            pass
        return self._at
