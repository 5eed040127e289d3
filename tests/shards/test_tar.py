"""Sound archives of every flavour: the reader gives what WebDataset gives."""

import gzip
import io
import tarfile
import tracemalloc

import pytest
import webdataset
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline.errors import ShardError, ShardFault, StorageError
from pipeline.shards.tar import Skip, TarReader, TarWarning, split_name
from tests.shards.tars import (
    BLOCK,
    END,
    URL,
    Dribble,
    Samples,
    archive,
    header,
    member,
    pax,
    samples_of,
    webdataset_samples,
    zstd,
)

NAMES = {
    "plain": ["a.jpg", "a.txt", "a.json", "b.jpg", "b.txt"],
    "multi-dot extension": ["a.seg.png", "a.jpg", "b.tar.gz"],
    "upper case": ["A.JPG", "A.Txt", "a.jpg"],
    "folders": ["train/n01/a.jpg", "train/n01/a.txt", "train/n02/a.jpg", "./x/y.jpg"],
    "folders with dots": ["v1.0/a.jpg", "v1.0/a.txt", "v1.1/a.jpg", "x.y.z/b.c.d"],
    "dot-files": [".hidden", "dir/.x.jpg", "a.b/.y.jpg", "/.z", "a/b/.jpg", "c.jpg"],
    "no extension": ["README", "dir/LICENSE", "a.jpg", "between", "a.txt", "b."],
    "WebDataset's own records": ["__meta__", "__meta__/x.jpg", "__a.jpg", "d/__b__.jpg", "__c__.jpg", "__/e.jpg"],
    "absolute and parent names": ["/etc/passwd.jpg", "../../x.jpg", "..", "a/../b.jpg"],
    "accents": ["Übung.jpg", "日本語/写真.jpg", "日本語/写真.txt", "e\u0301.jpg"],
    "blanks and controls": ["a b.jpg", "c\td.jpg", " .jpg", "\x7f.jpg"],
}
LONG_NAMES = {
    "just 100 bytes": ["d" * 96 + ".jpg", "e" * 96 + ".jpg"],
    "over 100 bytes": ["folder/" * 13 + "file" * 5 + ".jpg", "folder/" * 13 + "file" * 5 + ".txt"],
    "over 256 bytes": ["folder/" * 50 + "x" * 100 + ".jpg", "y" * 300 + ".png"],
}
FLAVOURS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


def contents(names: list[str]) -> list[tuple[str, bytes]]:
    """Members of all kinds of lengths, the empty one among them."""
    return [(name, bytes([i]) * (i * 300 % 1500)) for i, name in enumerate(names)]


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("names", NAMES)
def test_names_group_as_in_webdataset(names: str, flavour: str) -> None:
    data = archive(contents(NAMES[names]), flavour=FLAVOURS[flavour])
    assert samples_of(data)[0] == webdataset_samples(data) != []


@pytest.mark.parametrize("flavour", ["pax", "gnu"])
@pytest.mark.parametrize("names", LONG_NAMES)
def test_long_names(names: str, flavour: str) -> None:
    data = archive(contents(LONG_NAMES[names]), flavour=FLAVOURS[flavour])
    assert samples_of(data)[0] == webdataset_samples(data) != []


def test_ustar_prefix() -> None:
    data = archive(contents(["folder/" * 20 + "file.jpg", "folder/" * 20 + "file.txt"]), flavour=tarfile.USTAR_FORMAT)
    assert samples_of(data)[0] == webdataset_samples(data)
    assert samples_of(data)[0][0][0] == "folder/" * 20 + "file"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_latin1_names_keep_their_bytes(flavour: str) -> None:
    data = archive(contents(["caf\xe9.jpg", "caf\xe9.txt"]), flavour=FLAVOURS[flavour], encoding="latin-1")
    assert samples_of(data)[0] == webdataset_samples(data)
    assert len(samples_of(data)[0]) == 1


def test_shard_of_webdatasets_writer() -> None:
    out = io.BytesIO()
    with webdataset.TarWriter(out, encoder=False) as writer:  # no mtime given: a PAX header before every member
        for i in range(5):
            writer.write({"__key__": f"{i:05d}", "jpg": bytes(1000 * i), "txt": b"x"})
    samples, stats = samples_of(out.getvalue())
    assert samples == webdataset_samples(out.getvalue())
    assert (stats.samples, stats.members, stats.bytes_read) == (5, 10, len(out.getvalue()))
    assert not stats.skipped
    assert not stats.warnings


def test_links_devices_and_folders_between_members() -> None:
    types = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, type_ in enumerate(types):
            for name, kind in ((f"x{i}.jpg", type_), (f"{i // 2}.{'jpg' if i % 2 else 'txt'}", tarfile.REGTYPE)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "elsewhere.jpg"
                tar.addfile(info)
    samples, stats = samples_of(out.getvalue())
    assert samples == webdataset_samples(out.getvalue())
    assert [key for key, _ in samples] == ["0", "1", "2"]
    assert stats.skipped == {Skip.FOLDER: 1, Skip.LINK: 2, Skip.DEVICE: 2, Skip.FIFO: 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.c/d.E.F", ("a/b.c/d", "e.f")),
        ("a.", ("a", "")),
        ("dir/.x.jpg", ("dir/", "x.jpg")),
        ("//.x", ("//", "x")),
        ("a.b/.x", Skip.NO_EXTENSION),
        (".x", Skip.NO_EXTENSION),
        ("", Skip.NO_EXTENSION),
        ("a.b/c", Skip.NO_EXTENSION),
        ("__index__.json__", Skip.DUNDER),
        ("__x__/a.jpg", Skip.DUNDER),
        ("__x__.jpg", ("__x__", "jpg")),
        ("a/__x__/b.jpg", ("a/__x__/b", "jpg")),
        ("a.b\nc/d.jpg", ("a.b\nc/d", "jpg")),  # WebDataset drops this member
    ],
)
def test_name_split(name: str, expected: tuple[str, str] | Skip) -> None:
    assert split_name(name) == expected


@given(st.text(st.sampled_from("aB_./é\udce9"), max_size=12))
@example("a/./.b")
@example("/.b")
def test_any_name_splits_as_in_webdataset(name: str) -> None:
    split = split_name(name)
    if split is not Skip.DUNDER:
        prefix, suffix = base_plus_ext(name)
        assert split == ((prefix, suffix.lower()) if prefix is not None else Skip.NO_EXTENSION)


def outcome(data: bytes) -> Samples | ShardFault:
    """What the reader makes of an archive."""
    try:
        return samples_of(data)[0]
    except ShardError as exc:
        return exc.reason


@given(st.lists(st.text(st.sampled_from("aB_./é"), min_size=1, max_size=6), max_size=8))
def test_any_archive_groups_as_in_webdataset_or_is_refused(names: list[str]) -> None:
    data = archive(contents(names), flavour=tarfile.PAX_FORMAT)
    try:
        expected = webdataset_samples(data)
    except ValueError:  # a repeated member; it may come after a repeated key, which WebDataset does not mind
        assert outcome(data) in (ShardFault.DUPLICATE_MEMBER, ShardFault.DUPLICATE_KEY)
        return
    keys = [key for key, _ in expected]
    assert outcome(data) == (expected if len(set(keys)) == len(keys) else ShardFault.DUPLICATE_KEY)


@pytest.mark.parametrize("most", [1, 7, 511, 513, 1 << 20])
@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
def test_short_reads(pack: str, most: int) -> None:
    data = archive(contents(["a.jpg", "a.txt", "b.jpg", "link", "c/d.png"]), flavour=tarfile.PAX_FORMAT)
    packed = {"plain": bytes, "gzip": gzip.compress, "zstd": zstd}[pack](data)
    samples, stats = samples_of(packed, most=most)
    assert samples == webdataset_samples(data)
    assert stats.bytes_read == len(packed)


def test_contents_larger_than_a_chunk() -> None:
    members = [("a.bin", bytes(range(256)) * 10_000), ("b.bin", b"b" * (1 << 20)), ("c.bin", b"c" * 700)]
    samples, _ = samples_of(archive(members))
    assert samples == [(name[0], {"bin": content}) for name, content in members]


SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(lambda one, two: gzip.compress(one + two), id="gzip"),
        pytest.param(lambda one, two: gzip.compress(one) + gzip.compress(two), id="two gzip members"),
        pytest.param(
            lambda one, two: gzip.compress(one) + bytes(700) + gzip.compress(two) + bytes(9), id="padded gzip"
        ),
        pytest.param(lambda one, two: zstd(one + two), id="zstd"),
        pytest.param(lambda one, two: zstd(one) + SKIPPABLE_FRAME + zstd(two), id="two zstd frames"),
        pytest.param(lambda one, two: SKIPPABLE_FRAME + zstd(one + two), id="skippable zstd frame first"),
    ],
)
def test_compressed_archives(pack) -> None:
    data = archive(contents(["a.jpg", "a.txt", "b.jpg", "c.jpg"]))
    assert samples_of(pack(data[:1300], data[1300:]))[0] == webdataset_samples(data)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_memory_while_a_bomb_is_skipped(pack) -> None:
    packed = pack(archive([("bomb", bytes(64 << 20)), ("a.jpg", b"x")]))
    assert len(packed) < 100_000
    tracemalloc.start()
    samples, stats = samples_of(packed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (samples, stats.skipped) == ([("a", {"jpg": b"x"})], {Skip.NO_EXTENSION: 1})
    assert peak < 5 << 20


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(header(b"a.jpg", b"\x80" + bytes(9) + b"\x02\x58") + bytes(1024), id="base-256 size"),
        pytest.param(header(b"a.jpg", b"        1130") + bytes(1024), id="size with blanks"),
        pytest.param(header(b"a.jpg", b"1130" + bytes(8)) + bytes(1024), id="size with NULs"),
        pytest.param(pax({"size": "600"}) + header(b"a.jpg", 0) + bytes(1024), id="PAX size"),
        pytest.param(pax({"path": "a.jpg"}) + member(b"x.png", bytes(600)), id="PAX path"),
        pytest.param(pax({"path": "a.jpg"}, b"X") + member(b"x.png", bytes(600)), id="Solaris PAX path"),
        pytest.param(pax({"path": "", "mtime": "1.5"}) + member(b"a.jpg", bytes(600)), id="PAX path taken back"),
        pytest.param(pax({"comment": "x" * 900}, b"g") + member(b"a.jpg", bytes(600)), id="global PAX header"),
        pytest.param(pax({"path": "a.jpg"}, b"g") + member(b"x.png", bytes(600)), id="global PAX path"),
        pytest.param(pax({"path": "b"}, b"g") + pax({"path": "a.jpg"}) + member(b"x", bytes(600)), id="both PAX paths"),
        pytest.param(member(b"", b"a.jpg\0", kind=b"L") + member(b"x.png", bytes(600)), id="GNU long name"),
        pytest.param(member(b"", b"x.png\0", kind=b"K") + member(b"a.jpg", bytes(600)), id="GNU long link"),
        pytest.param(member(b"a.jpg", bytes(600), kind=b"\0", magic=b""), id="V7"),
        pytest.param(member(b"a.jpg", bytes(600), kind=b"7"), id="contiguous file"),
        pytest.param(member(b"a.jpg", bytes(600), magic=b"ustar  \0", prefix=b"13000000000"), id="GNU times"),
    ],
)
def test_header_flavours(data: bytes) -> None:
    assert samples_of(data + END)[0] == [("a", {"jpg": bytes(600)})]


def test_signed_checksum_of_a_latin1_name() -> None:
    samples, _ = samples_of(header(b"caf\xe9.jpg", signed=True) + END)
    assert samples == [("caf\udce9", {"jpg": b""})]


@pytest.mark.parametrize(
    ("data", "skip"),
    [
        (member(b"dir.d/", kind=b"\0", magic=b""), Skip.FOLDER),
        (header(b"x.jpg", 999, b"1"), Skip.LINK),
        (header(b"x.jpg", 999, b"5"), Skip.FOLDER),
        (member(b"x.jpg", b"label", kind=b"V"), Skip.OTHER_TYPE),
        (member(b"x.jpg", b"names", kind=b"D"), Skip.OTHER_TYPE),
        (member(b"x", b"content"), Skip.NO_EXTENSION),
        (member(b"__x__/a.jpg", b"content"), Skip.DUNDER),
    ],
)
def test_skipped_member_before_a_sample(data: bytes, skip: Skip) -> None:
    samples, stats = samples_of(data + member(b"a.jpg", b"x") + END)
    assert samples == [("a", {"jpg": b"x"})]
    assert stats.skipped == {skip: 1}


@pytest.mark.parametrize(
    ("end", "warnings"),
    [
        (b"", {TarWarning.MISSING_END_MARKER: 1}),
        (bytes(BLOCK), {TarWarning.LONE_END_BLOCK: 1}),
        (bytes(BLOCK + 100), {TarWarning.LONE_END_BLOCK: 1}),
        (END, {}),
        (bytes(10_240), {}),
        (bytes(10_240 + 77), {}),
    ],
)
def test_end_markers(end: bytes, warnings: dict[TarWarning, int]) -> None:
    samples, stats = samples_of(member(b"a.jpg", b"x") + end)
    assert samples == [("a", {"jpg": b"x"})]
    assert stats.warnings == warnings


def test_archive_without_members() -> None:
    samples, stats = samples_of(END)
    assert (samples, stats.samples) == ([], 0)


def test_archive_of_unknown_length() -> None:
    assert samples_of(member(b"a.jpg", b"x") + END, size=None)[0] == [("a", {"jpg": b"x"})]


def test_second_iteration() -> None:
    reader = TarReader(Dribble(END, 512), url=URL, size=len(END))
    assert list(reader) == []
    with pytest.raises(RuntimeError, match="once"):
        list(reader)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize("error", [StorageError("503"), ConnectionResetError("reset"), OSError("truncated")])
def test_transport_error_passes_through(error: Exception, pack) -> None:
    class Broken(Dribble):
        def read(self, n: int) -> bytes:
            data = super().read(n)
            if not data:
                raise error
            return data

    packed = pack(archive(contents(["a.jpg", "b.jpg"])))[:-1]
    with pytest.raises(type(error)) as caught:
        list(TarReader(Broken(packed, 100), url=URL, size=None))
    assert caught.value is error
