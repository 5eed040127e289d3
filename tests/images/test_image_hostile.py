"""Limits, and values without a known range: the reason is named, and no time or memory is spent.

Broken, lying and hostile files stand in `tests/security/hostile_images.py`.
"""

import time

import pytest
from PIL import Image, ImageFile

from pipeline.errors import Reject, Stage
from pipeline.images import ImageConfig, Prepared, prepare
from tests.support.memory import forget_peak, peak_bytes, resident_bytes

CPU_SECONDS = 1.0  # of this thread; a good file of this size takes a hundredth
MEMORY = 64 << 20  # bytes that a refused file may add to the process's peak


@pytest.fixture(scope="module")
def files(draw, encode) -> dict[str, bytes]:
    return {form: encode(draw(64, 80), form) for form in ("JPEG", "PNG")}


def refused(data: bytes, reason: str, config: ImageConfig) -> Reject:
    """Prepare must refuse, for this reason, without spending time or memory."""
    forget_peak()
    before, started = resident_bytes(), time.thread_time()
    outcome = prepare(data, config)
    assert time.thread_time() - started < CPU_SECONDS
    assert peak_bytes() - before < MEMORY
    assert isinstance(outcome, Reject)
    assert (outcome.reason, outcome.stage) == (reason, Stage.DECODE), outcome.detail
    assert 0 < len(outcome.detail) <= 200
    assert outcome.detail.isprintable()
    return outcome


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


def test_byte_limit(files):
    size = len(files["PNG"])
    assert isinstance(prepare(files["PNG"], ImageConfig(size=16, max_bytes=size)), Prepared)
    outcome = refused(files["PNG"], "too_large", ImageConfig(size=16, max_bytes=size - 1))
    assert "image.max_bytes" in outcome.detail


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
