"""Damaged archives: each damage has its name, and none passes for a shorter sound archive."""

import gc
import gzip
import tracemalloc
import weakref

import pytest

from pipeline.errors import ShardError, ShardFault
from pipeline.shards.tar import TarLimits, TarReader, TarWarning
from pipeline.shards.tar_stream import ObjectStream, ZstdStream
from tests.shards.tars import BLOCK, END, URL, Dribble, header, member, pax, samples_of, zstd

A, B, C = (member(name, name * 100) for name in (b"a.jpg", b"b.jpg", b"c.jpg"))  # 512 + 512 bytes each
GOOD = A + B + C + END
SAMPLES = [(name, {"jpg": f"{name}.jpg".encode() * 100}) for name in "abc"]
TEXT = b"<!doctype html><html><body>404 Not Found</body></html>\n"
GZIPPED, ZSTD = gzip.compress(GOOD, mtime=0), zstd(GOOD)
LIMITS = TarLimits(
    max_member_bytes=4000,
    max_sample_bytes=6000,
    max_name_bytes=300,
    max_members=6,
    max_header_bytes=2000,
    max_padding_bytes=20_000,
)


def flipped(data: bytes, at: int, mask: int = 0x10) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def zeroed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(BLOCK) + data[at + BLOCK :]


def stored(data: bytes) -> bytes:
    """A gzip file whose content can be damaged without breaking its deflate codes."""
    return gzip.compress(data, compresslevel=0, mtime=0)


DAMAGES = {
    "empty object": (b"", "empty"),
    "empty gzip stream": (gzip.compress(b""), "empty"),
    "html page": (TEXT * 30, "not_a_tar"),
    "short html page": (TEXT, "not_a_tar"),
    "bzip2": (b"BZh91AY&SY" + bytes(range(256)) * 4, "not_a_tar"),
    "gzipped html page": (gzip.compress(TEXT), "not_a_tar"),
    "first header corrupt": (flipped(GOOD, 3), "bad_header"),
    "later header corrupt": (flipped(GOOD, 1024 + 3), "bad_header"),
    "checksum corrupt": (flipped(GOOD, 1024 + 150, 1), "bad_header"),
    "first header zeroed": (zeroed(GOOD, 0), "trailing_data"),
    "later header zeroed": (zeroed(GOOD, 1024), "trailing_data"),
    "block inserted": (A + b"x" * BLOCK + B + END, "bad_header"),
    "block lost": (A[:BLOCK] + B + END, "bad_header"),
    "negative size": (header(b"a.jpg", b"\xff" * 12) + END, "bad_header"),
    "size with a sign": (header(b"a.jpg", b"-0000000001\0") + END, "bad_header"),
    "size with an underscore": (header(b"a.jpg", b"0000001_000\0") + END, "bad_header"),
    "size not octal": (header(b"a.jpg", b"00000000009\0") + END, "bad_header"),
    "size of letters": (header(b"a.jpg", b"much\0") + END, "bad_header"),
    "PAX size of letters": (pax({"size": "many"}) + A + END, "bad_header"),
    "PAX size negative": (pax({"size": "-1"}) + A + END, "bad_header"),
    "PAX size of 5000 digits": (pax({"size": "9" * 1500}) + A + END, "bad_header"),
    "PAX record too long": (pax(b"30 path=x.jpg\n") + A + END, "bad_header"),
    "PAX record of length 0": (pax(b"0 path=x.jpg\n") + A + END, "bad_header"),
    "PAX record too short": (pax(b"5 path=x.jpg\n") + A + END, "bad_header"),
    "PAX record without number": (pax(b"path=x.jpg\n") + A + END, "bad_header"),
    "PAX record without equals": (pax(b"8 path.\n") + A + END, "bad_header"),
    "PAX record without line feed": (pax(b"13 path=x.jpg") + A + END, "bad_header"),
    "PAX header before the end marker": (A + pax({"path": "x.jpg"}) + END, "bad_header"),
    "GNU long link before the end marker": (A + member(b"", b"x.jpg\0", kind=b"K") + END, "bad_header"),
    "PAX header before the end": (A + pax({"path": "x.jpg"}), "truncated"),
    "GNU sparse member": (header(b"a.jpg", kind=b"S") + END, "bad_header"),
    "PAX sparse member": (pax({"GNU.sparse.major": "1"}) + A + END, "bad_header"),
    "star sparse member": (pax({"SCHILY.realsize": "9"}) + A + END, "bad_header"),
    "continuation of another volume": (header(b"a.jpg", kind=b"M") + END, "bad_header"),
    "cut in a header": (GOOD[: 1024 + 100], "truncated"),
    "cut in a content": (GOOD[: 1024 + 512 + 100], "truncated"),
    "cut in padding": (GOOD[: 2048 - 5], "truncated"),
    "cut in a skipped content": (header(b"dotless", 3000) + bytes(100), "truncated"),
    "cut in a PAX header": (pax({"path": "x" * 90 + ".jpg"})[:600], "truncated"),
    "archives concatenated": (GOOD + member(b"d.jpg") + END, "trailing_data"),
    "trailing garbage": (GOOD + b"garbage", "trailing_data"),
    "keys interleaved": (A + B + member(b"a.txt") + member(b"b.txt") + END, "duplicate_key"),
    "key repeated apart": (A + B + A + END, "duplicate_key"),
    "member repeated": (A + A + END, "duplicate_member"),
    "member repeated in capitals": (A + member(b"a.JPG") + END, "duplicate_member"),
    "declared 8 GB": (header(b"a.jpg", 8 * 1024**3 - 1) + END, "limit_exceeded"),
    "declared 2^80 bytes": (header(b"a.jpg", b"\x80\0" + b"\1" + bytes(9)) + END, "limit_exceeded"),
    "PAX size of 10^18": (pax({"size": "1" + "0" * 18}) + header(b"a.jpg") + END, "limit_exceeded"),
    "sample of too many bytes": (b"".join(member(b"a.%d" % i, bytes(2000)) for i in range(3)) + END, "limit_exceeded"),
    "GNU name too long": (member(b"", b"x" * 400 + b"\0", kind=b"L") + A + END, "limit_exceeded"),
    "PAX name too long": (pax({"path": "x" * 400}) + A + END, "limit_exceeded"),
    "PAX header too large": (pax({"comment": "x" * 2000}) + A + END, "limit_exceeded"),
    "too many members": (b"".join(member(b"%d.jpg" % i) for i in range(7)) + END, "limit_exceeded"),
    "too many folders": (header(b"d/", kind=b"5") * 7 + END, "limit_exceeded"),
    "zeros without end": (A + bytes(30_000), "limit_exceeded"),
    "gzip cut": (GZIPPED[:-20], "truncated"),
    "gzip trailer cut": (GZIPPED[:-1], "truncated"),
    "gzip header cut": (GZIPPED[:5], "truncated"),
    "gzip flipped": (flipped(stored(GOOD), 700), "bad_compression"),
    "gzip block type unknown": (flipped(GZIPPED, 10, 0x02), "bad_compression"),
    "gzip length wrong": (flipped(GZIPPED, len(GZIPPED) - 1), "bad_compression"),
    "garbage after gzip": (GZIPPED + b"garbage", "trailing_data"),
    "half a gzip magic after gzip": (GZIPPED + b"\x1f", "truncated"),
    "gzip of a cut archive": (gzip.compress(GOOD[:1600]), "truncated"),
    "second archive in a gzip member": (GZIPPED + GZIPPED, "trailing_data"),
    "zstd cut": (ZSTD[:-5], "truncated"),
    "zstd damaged": (flipped(ZSTD, 8, 0xFF), "bad_compression"),
    "garbage after zstd": (ZSTD + b"garbage!", "bad_compression"),
    "zstd of a cut archive": (zstd(GOOD[:1600]), "truncated"),
}


@pytest.mark.parametrize("most", [1, 1 << 20])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_has_its_name(damage: str, most: int) -> None:
    data, fault = DAMAGES[damage]
    with pytest.raises(ShardError) as caught:
        samples_of(data, limits=LIMITS, most=most)
    assert caught.value.reason == fault
    assert str(caught.value).startswith(f"{URL}: ")
    assert "byte" in str(caught.value)
    assert "; " in str(caught.value)  # what was found; what to do


@pytest.mark.parametrize("data", [GOOD, GZIPPED, ZSTD], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("off", [-512, -1, 1, 512])
def test_length_other_than_the_objects(data: bytes, off: int) -> None:
    with pytest.raises(ShardError, match="the object must have") as caught:
        samples_of(data, size=len(data) + off)
    assert caught.value.reason is ShardFault.WRONG_LENGTH


def test_message_in_full() -> None:
    with pytest.raises(ShardError) as caught:
        samples_of(A + B + A + END)
    assert str(caught.value) == (
        "s3://bucket/00000.tar: at byte 2,048: key 'a' comes again after members of other keys; "
        "members of one sample must be neighbours: write the archive sorted by name"
    )


def test_message_about_a_compressed_archive() -> None:
    with pytest.raises(ShardError, match="at byte 1,024 of the decompressed archive: no sound header"):
        samples_of(gzip.compress(flipped(GOOD, 1024)))


@pytest.mark.parametrize("data", [GOOD, GZIPPED, ZSTD], ids=["plain", "gzip", "zstd"])
def test_every_cut_of_an_object_of_known_length(data: bytes) -> None:
    for cut in range(len(data)):
        with pytest.raises(ShardError):
            samples_of(data[:cut], size=len(data))


def test_every_cut_of_an_archive_that_is_the_whole_object() -> None:
    boundaries = []
    for cut in range(len(GOOD)):
        try:
            samples, stats = samples_of(GOOD[:cut])
        except ShardError:
            continue
        if samples != SAMPLES or stats.warnings[TarWarning.MISSING_END_MARKER]:
            boundaries.append(cut)
            assert stats.warnings == {TarWarning.MISSING_END_MARKER: 1}
            assert samples == SAMPLES[: cut // 1024]
    assert boundaries == [1024, 2048, 3072]


@pytest.mark.parametrize("data", [GZIPPED, ZSTD], ids=["gzip", "zstd"])
def test_every_cut_of_a_compressed_archive(data: bytes) -> None:
    for cut in range(len(data)):
        with pytest.raises(ShardError):
            samples_of(data[:cut])


def test_every_cut_of_an_archive_of_unknown_length() -> None:
    for cut in range(len(A + B + C + bytes(BLOCK))):
        with pytest.raises(ShardError):
            samples_of(GOOD[:cut], size=None)


@pytest.mark.parametrize("mask", [0x01, 0x10, 0x80, 0xFF])
def test_every_damaged_header_byte(mask: int) -> None:
    data = pax({"path": "x.jpg"}) + A + B + END
    expected = samples_of(data)[0]
    harmless = 0
    for at in [*range(BLOCK), *range(1024, 1024 + BLOCK), *range(2048, 2048 + BLOCK)]:
        try:
            harmless += samples_of(flipped(data, at, mask))[0] == expected
        except ShardError:
            continue
    assert harmless <= 3 * 8  # nothing but spare bytes of the checksum fields themselves


@pytest.mark.parametrize("at", [0, 1024, 2048])
def test_every_zeroed_header(at: int) -> None:
    with pytest.raises(ShardError, match="after the end marker"):
        samples_of(zeroed(GOOD, at))


def test_gzip_that_lost_its_second_member() -> None:
    whole = gzip.compress(A) + gzip.compress(B + END)
    with pytest.raises(ShardError) as caught:
        samples_of(gzip.compress(A), size=len(whole))
    assert caught.value.reason is ShardFault.WRONG_LENGTH


def test_last_sample_is_held_back_until_the_end_is_sound() -> None:
    data = A + B + C + bytes(BLOCK) + b"garbage"
    reader = iter(TarReader(Dribble(data, BLOCK), url=URL, size=len(data)))
    assert [next(reader).key, next(reader).key] == ["a", "b"]
    with pytest.raises(ShardError):
        next(reader)


def test_declared_size_allocates_nothing() -> None:
    data = header(b"a.jpg", 900 * 1024**2) + bytes(5000)
    tracemalloc.start()
    with pytest.raises(ShardError, match="which the data ends before"):
        samples_of(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("limit", list(TarLimits.model_fields))
def test_limit_is_named_in_its_message(limit: str) -> None:
    data = pax({"path": "aa.jpg"}) + member(b"x", b"content") + bytes(2 * BLOCK)
    with pytest.raises(ShardError, match=rf"over tar\.{limit}=1; raise the limit"):
        samples_of(data, limits=TarLimits(**{limit: 1}))


def refused_zstd_stream() -> ZstdStream:
    """A stream whose object was found to be longer than it must be."""
    stream = ZstdStream(ObjectStream(Dribble(ZSTD + b"x", BLOCK), url=URL, size=len(ZSTD)))
    try:
        while stream.read(BLOCK):
            pass
    except ShardError:
        return stream
    raise AssertionError("the object was not refused")


def test_refused_zstd_stream_is_freed_at_once() -> None:
    gc.disable()  # as good as off in a worker: such a cycle holds few objects, but a third of a megabyte of buffers
    try:
        left = weakref.ref(refused_zstd_stream())  # within an assert pytest would keep the stream
        assert left() is None
    finally:
        gc.enable()
