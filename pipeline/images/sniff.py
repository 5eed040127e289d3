"""What the first bytes say: the format, and the traps that must be known before a decoder sees the file.

JPEG is ISO/IEC 10918-1 (markers: table B.1), PNG is ISO/IEC 15948 (chunks: section 5), WebP is RFC 9649 (RIFF).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pipeline.images.reasons import BadImage, Reason


class Format(StrEnum):
    """The formats that are decoded."""

    JPEG = "jpeg"
    PNG = "png"
    GIF = "gif"
    WEBP = "webp"
    AVIF = "avif"
    TIFF = "tiff"
    BMP = "bmp"
    PNM = "pnm"


_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_DECODED: Final = tuple(
    (re.compile(pattern, re.DOTALL), form)
    for pattern, form in (
        (rb"\xff\xd8\xff", Format.JPEG),
        (re.escape(_PNG_MAGIC), Format.PNG),
        (rb"GIF8[79]a", Format.GIF),
        (rb"RIFF....WEBP", Format.WEBP),
        (rb"....ftyp(?:....){0,9}?avi[fs]", Format.AVIF),  # the major brand, or a compatible one of mif1 and msf1
        (rb"II[*+]\0|MM\0[*+]", Format.TIFF),
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", Format.BMP),  # "BM" alone also starts ordinary words
        (rb"P[456]\s+[#\d]", Format.PNM),
    )
)
# Images that people do find in shards; named so that the accounts tell another format from garbage.
_REFUSED: Final = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
        (rb"%PDF-", "PDF"),
        (rb"8BPS", "PSD"),
        (rb"\0\0[\1\2]\0", "ICO"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
        (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "JPEG 2000"),
        (rb"P[1237Ff]\s+[#\d]", "plain, PAM or float PNM"),
        (rb"qoif", "QOI"),
        (rb"DDS ", "DDS"),
        (rb"v/1\x01|#\?RADIANCE", "HDR"),
        (rb"....ftyp(?:hei|hev|mif1|msf1)", "HEIC"),
        (rb"....ftyp", "ISO media (video)"),
        (rb"(?i:(?:\xef\xbb\xbf)?\s*<(?:svg|(?:\?xml|!DOCTYPE svg).*?<svg))", "SVG"),
    )
)
_HEAD: Final = 4096  # bytes: an SVG may have a long preamble, a PNM comments
_PNM_NUMBER: Final = rb"(?:\s|#[^\r\n]*[\r\n])+\d+"
_PNM_HEADER: Final = re.compile(rb"(?:P4|P[56]%b)%b%b\s" % ((_PNM_NUMBER,) * 3))

# What comes before the pixels is read in Python, by Pillow and here. Good files have some dozens of these; a file made
# of them costs half a second for every MiB, with the GIL held.
_MAX_PNG_CHUNKS: Final = 100_000  # 89 megapixels in chunks of 4 KiB
_MAX_JPEG_SEGMENTS: Final = 10_000
_MAX_JPEG_GAP: Final = 1 << 16  # bytes of fill or garbage between two segments


def sniff(data: bytes) -> Format:
    """The format by its magic bytes; names and extensions are not asked, they lie too often.

    Raises:
        BadImage: `unsupported_format` for a known image format that is not decoded here, else `not_image`.
    """
    for pattern, form in _DECODED:
        if pattern.match(data):
            return form
    head = data[:_HEAD]
    for pattern, name in _REFUSED:
        if pattern.match(head):
            raise BadImage(Reason.UNSUPPORTED_FORMAT, f"{name} is not decoded; supported: {', '.join(Format)}")
    raise BadImage(Reason.NOT_IMAGE, f"no known image format starts with {data[:16]!r}")


# Fill bytes, stuffed zeros, restart markers and TEM have no segment; all else is worth a stop.
_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # less DHT, JPG, DAC
_DCT: Final = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # baseline, extended, progressive; arithmetic coded twice


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The facts about a JPEG that decide whether to decode it.

    Attributes:
        dct: coded by DCT, not lossless or hierarchical.
        precision: bits per component.
        height: pixels, as the frame header says; it may lie.
        width: likewise.
        components: 1 gray, 3 colour, 4 CMYK.
        scans: entropy-coded passes over the image, counted up to the first one over the limit.
    """

    dct: bool
    precision: int
    height: int
    width: int
    components: int
    scans: int


def read_jpeg(data: bytes, max_scan_pixels: int) -> JpegHeader:
    """Walk the markers of a JPEG without decoding it: some microseconds, and a search for 0xFF over the bytes.

    Thumbnails lie inside segments and are not entered; what follows the end marker is not looked at.

    Args:
        data: the file.
        max_scan_pixels: pixels x scans after which to stop counting.

    Raises:
        BadImage: `truncated` or `corrupt` without a frame header before the first scan; `too_large` with more segments
            than any camera or program writes.
    """
    segments = _segments(data)
    frame, start = next((item for item in segments if item[0] in _SOF or item[0] in (_SOS, _EOI)), (_EOI, len(data)))
    if start + 8 > len(data):  # length, precision, height, width, components
        raise BadImage(Reason.TRUNCATED, "the JPEG ends before its frame header")
    if frame not in _SOF:
        raise BadImage(Reason.CORRUPT, "the JPEG has no frame header before its first scan")
    precision, height, width, components = struct.unpack_from(">BHHB", data, start + 2)
    scans = 0
    for marker, _ in segments:
        scans += marker == _SOS
        if marker == _EOI or scans * height * width > max_scan_pixels:
            break
    return JpegHeader(frame in _DCT, precision, height, width, components, scans)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker's code and the offset behind it; garbage in between is skipped, as libjpeg does."""
    position, code, count = 2, _SOI, 0
    while match := _MARKER.search(data, position):
        count += 1
        gap = 0 if code == _SOS else match.start() - position  # behind SOS come the pixels
        if count > _MAX_JPEG_SEGMENTS or gap > _MAX_JPEG_GAP:
            found = f"{count:,} segments" if count > _MAX_JPEG_SEGMENTS else f"{gap:,} bytes between two segments"
            raise BadImage(Reason.TOO_LARGE, f"a JPEG with {found} or more, before byte {position:,}")
        code, position = match[0][1], match.end()
        yield code, position
        if code not in (_SOI, _EOI):
            position += int.from_bytes(data[position : position + 2], "big")


def check_structure(form: Format, data: bytes) -> None:
    """Refuse what Pillow would show though its end is missing, or would read all of in search of its beginning.

    Looks at PNG, WebP and PNM. The decoders of other formats notice themselves; of an animation only the first frame
    matters.

    Raises:
        BadImage: `truncated`, `corrupt` or `too_large`.
    """
    whole = True
    if form is Format.WEBP:
        whole = int.from_bytes(data[4:8], "little") + 8 <= len(data)
    elif form is Format.PNG:
        whole = _png_reaches_end(data)
    elif form is Format.PNM and not _PNM_HEADER.match(data[:_HEAD]):
        raise BadImage(Reason.CORRUPT, f"no size in the first {_HEAD:,} bytes of a PNM")
    if not whole:
        raise BadImage(Reason.TRUNCATED, f"the {form} file ends before its end marker, after {len(data)} bytes")


def _png_reaches_end(data: bytes) -> bool:
    position, count = len(_PNG_MAGIC), 0
    while position + 12 <= len(data):  # length, type and CRC, four bytes each, around the content
        if data[position + 4 : position + 8] == b"IEND":
            return True
        count += 1
        if count > _MAX_PNG_CHUNKS:
            raise BadImage(Reason.TOO_LARGE, f"a PNG of more than {_MAX_PNG_CHUNKS:,} chunks")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False
