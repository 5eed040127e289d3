"""Broken, lying and hostile files: the reason is named, and no time or memory is spent on what a header only claims."""

import io
import re
import resource
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.errors import Reject, Stage
from pipeline.images import ImageConfig, Prepared, prepare

CPU_SECONDS = 1.0  # of this thread; a good file of this size takes a hundredth
MEMORY = 64 << 20  # bytes that a refused file may add to the process's peak


def frame_header(jpeg: bytes, fields: str, offset: int, *values: int, marker: int | None = None) -> bytes:
    """The JPEG with values overwritten at an offset into its frame header's segment, or with another frame marker."""
    at = re.search(rb"\xff[\xc0-\xc2]\0", jpeg).start()
    patched = bytearray(jpeg)
    patched[at + 1] = marker or jpeg[at + 1]
    struct.pack_into(fields, patched, at + offset, *values)
    return bytes(patched)


def resized_jpeg(jpeg: bytes, height: int, width: int) -> bytes:
    return frame_header(jpeg, ">HH", 5, height, width)


def more_scans(progressive: bytes, times: int, disguise: bytes = b"") -> bytes:
    """Empty scans before the end marker: a few bytes each, that cost the decoder a pass over the whole image."""
    last = progressive.rindex(b"\xff\xda")
    header = progressive[last : last + 2 + int.from_bytes(progressive[last + 2 : last + 4], "big")]
    return progressive[:last] + disguise + progressive[last:-2] + header * times + progressive[-2:]


END_IN_A_COMMENT = b"\xff\xfe\0\x06\xff\xd9\xff\xd9"  # fools a search for bytes


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (1 + side // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", b"x" * 500)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(draw, encode) -> dict[str, bytes]:
    pixels = draw(64, 80)
    one_form = {form: encode(pixels, form) for form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "PPM")}
    return {
        **one_form,
        "progressive": encode(pixels, "JPEG", progressive=True),
        "BMP": encode(draw(64, 64), "BMP"),
        "GIF": encode(Image.fromarray(pixels).quantize(64), "GIF"),
    }


NOT_AN_IMAGE = {
    "no bytes": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>404 <svg></svg></body></html>", "not_image"),
    "json": (b'{"error": "AccessDenied"}', "not_image"),
    "zip": (zipped(), "not_image"),
    "random": (np.random.default_rng(5).bytes(5000), "not_image"),
    "zeros": (bytes(5000), "not_image"),
    "one byte": (b"\xff", "not_image"),
    "a text that starts like a BMP": (b"BMW sells cars, and this is a caption", "not_image"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage", "unsupported_format"),
    "eps with preview": (b"\xc5\xd0\xd3\xc6" + bytes(60), "unsupported_format"),
    "svg": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="9" height="9"/>', "unsupported_format"),
    "bare svg": (b' <svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
    "pdf": (b"%PDF-1.7\n", "unsupported_format"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "unsupported_format"),
    "mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(50), "unsupported_format"),
    "jxl": (b"\xff\x0a" + bytes(50), "unsupported_format"),
    "plain ppm": (b"P3 1 1 255 1 2 3", "unsupported_format"),
    "jpeg magic only": (b"\xff\xd8\xff", "truncated"),
    "jpeg without a frame": (b"\xff\xd8\xff\xda\0\x08\1\1\0\0\x3f\0data\xff\xd9", "corrupt"),
    "png magic only": (b"\x89PNG\r\n\x1a\n", "truncated"),
    "gif magic only": (b"GIF89a", "corrupt"),
    "ppm of 7 bits": (b"P5 2 2 127 abcd", "unsupported_format"),
    "ppm without an end of its comment": (b"P5 #" + b"x" * 100, "corrupt"),
}

DAMAGED = {
    "jpeg less its last byte": ("JPEG", lambda d: d[:-1], "truncated"),
    "jpeg half": ("JPEG", lambda d: d[: len(d) // 2], "truncated"),
    "jpeg header half": ("JPEG", lambda d: d[:100], "truncated"),
    "progressive half": ("progressive", lambda d: d[: len(d) // 2], "truncated"),
    "png less its last byte": ("PNG", lambda d: d[:-1], "truncated"),
    "png half": ("PNG", lambda d: d[: len(d) // 2], "truncated"),
    "png with a wrong byte": ("PNG", lambda d: d[:200] + bytes([d[200] ^ 255]) + d[201:], "corrupt"),
    "webp less its last byte": ("WEBP", lambda d: d[:-1], "truncated"),
    "webp without its key frame": ("WEBP", lambda d: d[:23] + bytes(len(d) - 23), "corrupt"),
    "avif half": ("AVIF", lambda d: d[: len(d) // 2], "corrupt"),
    "avif less its last byte": ("AVIF", lambda d: d[:-1], "truncated"),
    "gif half": ("GIF", lambda d: d[: len(d) // 2], "truncated"),
    "tiff half": ("TIFF", lambda d: d[: len(d) // 2], "truncated"),
    "bmp less its last byte": ("BMP", lambda d: d[:-1], "truncated"),
    "ppm half": ("PPM", lambda d: d[: len(d) // 2], "truncated"),
    "jpeg of 12 bits": ("JPEG", lambda d: frame_header(d, "B", 4, 12), "unsupported_format"),
    "jpeg of 2 components": ("JPEG", lambda d: frame_header(d, "B", 9, 2), "unsupported_format"),
    "lossless jpeg": ("JPEG", lambda d: frame_header(d, "B", 4, 8, marker=0xC3), "unsupported_format"),
    "jpeg of 9000 x 9000 less its last byte": ("JPEG", lambda d: resized_jpeg(d, 9000, 9000)[:-1], "truncated"),
    "jpeg of no height": ("JPEG", lambda d: resized_jpeg(d, 0, 80), "corrupt"),
    "jpeg that claims 20000 x 20000": ("JPEG", lambda d: resized_jpeg(d, 20000, 20000), "too_large"),
    "jpeg of 9000 x 9000 in 20 scans": (
        "progressive",
        lambda d: resized_jpeg(more_scans(d, 20), 9000, 9000),
        "too_large",
    ),
    "jpeg with hidden scans": (
        "progressive",
        lambda d: resized_jpeg(more_scans(d, 20, END_IN_A_COMMENT), 9000, 9000),
        "too_large",
    ),
    "jpeg of 400,000 scans": ("progressive", lambda d: more_scans(d, 400_000), "too_large"),
    "gif that claims 20000 x 20000": ("GIF", lambda d: d[:6] + struct.pack("<HH", 20000, 20000) + d[10:], "too_large"),
    "gif frame beyond its canvas": (
        "GIF",
        lambda d: d.replace(b",\0\0\0\0\x50\0\x40\0", b",\0\0\0\0\xff\xff\xff\xff"),
        "too_large",
    ),
    "bmp that claims 20000 x 20000": ("BMP", lambda d: d[:18] + struct.pack("<ii", 20000, 20000) + d[26:], "too_large"),
    "png that claims 20000 x 20000": (
        "PNG",
        lambda d: d[:8] + chunk(b"IHDR", struct.pack(">II", 20000, 20000) + d[24:29]) + d[33:],
        "too_large",
    ),
    "png bomb": ("PNG", lambda _: png_bomb(12000), "too_large"),
}


def refused(data: bytes, reason: str, config: ImageConfig) -> Reject:
    """Prepare must refuse, for this reason, without spending time or memory."""
    peak, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    outcome = prepare(data, config)
    assert time.thread_time() - started < CPU_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY
    assert isinstance(outcome, Reject)
    assert (outcome.reason, outcome.stage) == (reason, Stage.DECODE), outcome.detail
    assert 0 < len(outcome.detail) <= 200
    assert outcome.detail.isprintable()
    return outcome


@pytest.mark.parametrize("name", NOT_AN_IMAGE)
def test_file_that_is_no_image(name):
    data, reason = NOT_AN_IMAGE[name]
    refused(data, reason, ImageConfig())


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file(files, name):
    original, damage, reason = DAMAGED[name]
    assert isinstance(prepare(files[original], ImageConfig()), Prepared)
    data = damage(files[original])
    assert data != files[original]
    refused(data, reason, ImageConfig())


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_values_without_a_known_range(encode, mode):
    outcome = refused(encode(Image.new(mode, (20, 20)), "TIFF"), "unsupported_format", ImageConfig())
    assert mode in outcome.detail


def test_sixteen_bit_tiff_with_white_at_zero(encode):
    data = encode(Image.new("I;16", (20, 20)), "TIFF", tiffinfo={262: 0})
    refused(data, "unsupported_format", ImageConfig())


def test_run_length_bmp(encode):
    data = bytearray(encode(Image.new("L", (20, 20)), "BMP"))
    data[30] = 1  # BI_RLE8
    assert "bmp_rle" in refused(bytes(data), "unsupported_format", ImageConfig()).detail


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_pixels": 64 * 80 - 1}, "too_large"),
        ({"max_scan_pixels": 64 * 80 - 1}, "too_large"),
        ({"min_side": 65}, "too_small"),
    ],
)
def test_limit_just_missed(files, options, reason):
    outcome = refused(files["JPEG"], reason, ImageConfig(**options))
    assert f"image.{next(iter(options))}" in outcome.detail


@pytest.mark.parametrize("options", [{"max_pixels": 64 * 80}, {"max_scan_pixels": 64 * 80}, {"min_side": 64}])
def test_limit_just_kept(files, options):
    assert isinstance(prepare(files["JPEG"], ImageConfig(size=16, **options)), Prepared)


@pytest.mark.parametrize("error", [MemoryError(), AttributeError("a bug\nof two \x1b lines")])
def test_unexpected_error_becomes_a_reject(files, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("pipeline.images.pixels.decode", fail)
    outcome = refused(files["PNG"], "internal", ImageConfig())
    assert outcome.detail.startswith(type(error).__name__)


def test_pillow_set_to_make_up_pixels(files, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "truncated" in refused(files["JPEG"], "internal", ImageConfig()).detail
