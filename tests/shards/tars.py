"""Small tars for tests: good ones by `tarfile`, odd and damaged ones block by block."""

import io
import struct
import tarfile
from collections.abc import Iterable, Iterator

import pyarrow as pa
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.shards.tar import Sample, TarLimits, TarReader, TarStats

BLOCK = 512
END = bytes(2 * BLOCK)
URL = "s3://bucket/00000.tar"

Samples = list[tuple[str, dict[str, bytes]]]


def archive(members: Iterable[tuple[str, bytes]], *, flavour: int = tarfile.USTAR_FORMAT, **options) -> bytes:
    """A good archive, as tarfile writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=flavour, **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def padded(content: bytes) -> bytes:
    """Content filled up with zeros to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def header(
    name: bytes,
    size: bytes | int = 0,
    kind: bytes = b"0",
    *,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    signed: bool = False,
) -> bytes:
    """One header block whose checksum (of signed bytes, if asked) is right; `size` as bytes is written as it is."""
    number = b"%011o\0" % size if isinstance(size, int) else size
    start = struct.pack("100s8s8s8s12s12s", name, b"0000644\0", b"0000000\0", b"0000000\0", number, b"00000000000\0")
    rest = struct.pack("c100s8s32s32s8s8s155s12x", kind, b"", magic, b"", b"", b"", b"", prefix)
    values = struct.unpack(f"504{'b' if signed else 'B'}", start + rest)
    return start + b"%06o\0 " % (sum(values) + 8 * ord(" ")) + rest


def member(name: bytes, content: bytes = b"", **fields) -> bytes:
    """A header and its content, block by block."""
    return header(name, len(content), **fields) + padded(content)


def pax(records: bytes | dict[str, str], kind: bytes = b"x") -> bytes:
    """A PAX extended header."""
    if isinstance(records, dict):
        records = b"".join(_record(key, value.encode()) for key, value in records.items())
    return member(b"PaxHeaders/x", records, kind=kind)


def _record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def zstd(data: bytes) -> bytes:
    """One zstd frame, without a checksum."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


class Dribble:
    """A stream that gives at most `most` bytes a read."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file = io.BytesIO(data)
        self._most = most

    def read(self, n: int) -> bytes:
        return self._file.read(min(n, self._most))


def samples_of(
    data: bytes, *, size: int | None = -1, most: int = 1 << 30, limits: TarLimits | None = None
) -> tuple[Samples, TarStats]:
    """All samples and the statistics of one archive; its own length is the object's unless `size` says otherwise."""
    reader = TarReader(Dribble(data, most), url=URL, size=len(data) if size == -1 else size, limits=limits)
    samples: list[Sample] = list(reader)
    assert [sample.index for sample in samples] == list(range(len(samples)))
    return [(sample.key, sample.members) for sample in samples], reader.stats


def webdataset_samples(data: bytes) -> Samples:
    """The same archive as WebDataset groups it."""
    groups: Iterator[dict] = group_by_keys(tar_file_expander([{"url": URL, "stream": io.BytesIO(data)}]))
    return [
        (group.pop("__key__"), {ext: value for ext, value in group.items() if ext != "__url__"}) for group in groups
    ]
