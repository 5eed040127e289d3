"""The second, independent reading of a tar: the same samples as WebDataset sees, and no silence about damage."""

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.errors import ShardError, ShardFault
from pipeline.recount import source_keys
from pipeline.storage import Storage

BLOCK = 512
PLAIN = [f"{key}.{kind}" for key in ("a", "b", "folder/c") for kind in ("jpg", "txt")]


def tar(names: list[str], flavour: int = tarfile.PAX_FORMAT, content: bytes = b"abc") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=flavour) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def pzstd(data: bytes) -> bytes:
    """As parallel compressors write it: before each frame one to be skipped, with the frame's length."""
    frame = zstd(data)
    return b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + len(frame).to_bytes(4, "little") + frame


@pytest.fixture
def keys_of(tmp_path: Path) -> Callable[[bytes], list[str]]:
    """The keys of a shard with these bytes."""

    def read(data: bytes) -> list[str]:
        path = tmp_path / "shard"
        path.write_bytes(data)
        return source_keys(Storage(), Storage().stat(str(path)))

    return read


NAMES: dict[str, list[str]] = {
    "plain": PLAIN,
    "no members": [],
    "several dots": ["a.b.jpg", "a.c.jpg", "d.e/f.jpg"],
    "no dot": ["a.jpg", "b", "a.txt", "x.y/z"],
    "hidden files": ["a.jpg", ".DS_Store", "a.txt", "._a.jpg", "folder/.b.jpg", "x.y/.c.jpg"],
    "dot at the end": ["a.", "b.jpg"],
    "WebDataset's own names": ["__meta__", "__a.b__", "__x__/a.jpg", "__y__.jpg", "x/__z__.jpg"],
    "paths": ["./a.jpg", "./a.txt", "/b.jpg", "../c.jpg", "d//e.jpg"],
    "letter case": ["a.JPG", "a.Txt", "A.jpg"],
    "long names": ["x" * 180 + "/" + "y" * 120 + ".jpg", "z.jpg"],
    "beyond ASCII": ["ü.jpg", "图/像.jpg", "a b.jpg", "a\nb.jpg"],
    "repeated key": ["a.jpg", "b.jpg", "a.txt"],
}


@pytest.mark.parametrize("flavour", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_keys_as_webdataset_groups_them(keys_of: Callable[[bytes], list[str]], names: list[str], flavour: int) -> None:
    data = tar(names, flavour)
    stream = tar_file_expander([{"url": "shard", "stream": io.BytesIO(data)}])
    assert keys_of(data) == [sample["__key__"] for sample in group_by_keys(stream)]


@pytest.mark.parametrize("options", [[], ["--incremental"]], ids=["plain", "with times"])
def test_archives_of_gnu_tar(keys_of: Callable[[bytes], list[str]], tmp_path: Path, options: list[str]) -> None:
    keys = ["1" * 11 + "/" + "y" * 150, "a", "folder/b", "folder/" + "x" * 89, "folder/" + "x" * 90, "ü"]
    for key in keys:
        (tmp_path / f"{key}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"{key}.jpg").write_bytes(b"abc")
    command = ["tar", "--format=gnu", *options, "-cf", "-", *(f"{key}.jpg" for key in keys)]
    data = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
    times = data.index(b"a.jpg\0") + 345
    assert (data[times] > 0) == bool(options), "they are where ustar has the folders of a name"
    assert keys_of(data) == keys
    with pytest.raises(ShardError):  # the checksum is over the times as well
        keys_of(data[:times] + bytes([data[times] ^ 1]) + data[times + 1 :])


def test_names_that_are_not_utf8(keys_of: Callable[[bytes], list[str]]) -> None:
    assert keys_of(tar(["a\udcff.jpg"], tarfile.GNU_FORMAT)) == ["a\\xff"]


def test_links_and_folders_are_no_members(keys_of: Callable[[bytes], list[str]]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in {"a.jpg": tarfile.REGTYPE, "d.ir": tarfile.DIRTYPE, "l.jpg": tarfile.SYMTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    assert keys_of(file.getvalue()) == ["a"]


@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "in two frames"])
@pytest.mark.parametrize("compress", [gzip.compress, zstd, pzstd])
def test_compressed(keys_of: Callable[[bytes], list[str]], compress: Callable[[bytes], bytes], parts: int) -> None:
    data = tar(PLAIN)
    half = len(data) // parts
    packed = b"".join(compress(data[start : start + half]) for start in range(0, len(data), half))
    assert keys_of(packed) == ["a", "b", "folder/c"]
    with pytest.raises(ShardError) as caught:
        keys_of(packed[:-9])
    assert caught.value.reason is ShardFault.BAD_COMPRESSION


def test_no_end_marker(keys_of: Callable[[bytes], list[str]]) -> None:
    assert keys_of(tar(PLAIN)[: len(PLAIN) * 2 * BLOCK]) == ["a", "b", "folder/c"]


@pytest.mark.parametrize("hole", [bytes(BLOCK), b"\xff" * BLOCK], ids=["zeroed", "overwritten"])
@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_damaged_header(keys_of: Callable[[bytes], list[str]], number: int, hole: bytes) -> None:
    data, start = tar(PLAIN), number * 2 * BLOCK
    with pytest.raises(ShardError, match=r"not a whole tar|neither a whole header nor the end"):
        keys_of(data[:start] + hole + data[start + BLOCK :])


@pytest.mark.parametrize("at", [1, 511, 513, 1025, 1535, 1600, 5000])
def test_cut_off_a_member_boundary(keys_of: Callable[[bytes], list[str]], at: int) -> None:
    with pytest.raises(ShardError):
        keys_of(tar(PLAIN)[:at])


@pytest.mark.parametrize("data", [b"", b"<html>no such bucket</html>" * 50], ids=["empty", "html"])
def test_no_tar(keys_of: Callable[[bytes], list[str]], data: bytes) -> None:
    with pytest.raises(ShardError) as caught:
        keys_of(data)
    assert caught.value.reason is ShardFault.BAD_HEADER


def test_second_archive_behind_the_first(keys_of: Callable[[bytes], list[str]]) -> None:
    with pytest.raises(ShardError) as caught:
        keys_of(tar(["a.jpg"]) + tar(["b.jpg"]))
    assert caught.value.reason is ShardFault.TRAILING_DATA
