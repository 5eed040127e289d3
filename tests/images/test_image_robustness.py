"""Any bytes, and many threads: never an exception, never other pixels."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image

from pipeline.errors import Reject
from pipeline.images import ImageConfig, Prepared, Reason, configure_pillow, prepare

# Metadata damaged by chance makes Pillow warn; the warnings are silenced in a worker, and are no matter here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MAGICS = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
    b"GIF89a",
    b"RIFF\x10\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"\0\0\0\x18ftypavif",
    b"II*\0\x08\0\0\0",
    b"BM" + bytes(12) + b"\x28\0\0\0",
    b"P6 ",
    b"<?xml",
]
FORMS = {
    "JPEG": {},
    "progressive": {"progressive": True},
    "PNG": {},
    "GIF": {},
    "WEBP": {},
    "AVIF": {},
    "TIFF": {},
    "BMP": {},
    "PPM": {},
}
SMALL = ImageConfig(size=16, max_pixels=1_000_000, max_scan_pixels=10_000_000)


def check(data: bytes) -> None:
    outcome = prepare(data, SMALL)
    if isinstance(outcome, Reject):
        assert outcome.reason in set(Reason) - {Reason.INTERNAL}, outcome
    else:
        assert outcome.views[0].pixels.shape == (16, 16, 3)


@settings(max_examples=300, deadline=None)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=300))
def test_arbitrary_bytes(magic, rest):
    check(magic + rest)


@pytest.fixture(scope="module")
def files(draw, encode) -> dict[str, bytes]:
    pixels = draw(40, 56)
    return {
        name: encode(pixels, "JPEG" if name == "progressive" else name, **options) for name, options in FORMS.items()
    }


EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "cut", "drop", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, patch in edits:
        at = int(where**3 * len(data))  # headers are short, and worth most of the blows
        if kind == "cut":
            data = data[: len(data) - at]
        else:
            end = at + (0 if kind == "insert" else len(patch))
            data = data[:at] + (b"" if kind == "drop" else patch) + data[end:]
    return data


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=200, deadline=None)
@given(edits=EDITS)
def test_mutated_file(files, name, edits):
    check(edited(files[name], edits))


def pixel_hash(data: bytes) -> str:
    outcome = prepare(data, ImageConfig(size=32))
    assert isinstance(outcome, Prepared), outcome
    return hashlib.sha256(outcome.views[0].pixels.tobytes()).hexdigest()


def test_eight_threads_give_the_same_pixels(draw, encode):
    pictures = [encode(draw(200, 150 + seed, seed=seed), form) for seed in range(3) for form in ("JPEG", "PNG", "WEBP")]
    pictures += [encode(Image.fromarray(draw(90, 90)).quantize(9), "GIF"), encode(draw(90, 90), "AVIF")]
    expected = [pixel_hash(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pixel_hash, pictures * 12)) == expected * 12


def test_configured_process_gives_the_same_pixels_in_silence(draw, encode, monkeypatch, recwarn):
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    avif = encode(draw(300, 300), "AVIF")
    expected = pixel_hash(avif)
    configure_pillow()
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1
    assert pixel_hash(avif) == expected
    pixel_hash(encode(draw(90, 90), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12"))
    assert not recwarn.list
