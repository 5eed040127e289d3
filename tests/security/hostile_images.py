"""Files that lie, loop, explode, break off or are something else: each made by a few lines, with the reject it must be.

`all_kinds` maps what is wrong to (reason, bytes). Files whose malice does not touch the
pixels stand in `heavy_kinds`: they are decoded, within the same bounds.
"""

import gzip
import io
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain

import numpy as np
from PIL import Image

HUGE = 65_000  # pixels: 4.2 billion in a square
MIB = 1 << 20


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    """A good picture of 80 x 64 noisy pixels."""
    noise = np.random.default_rng(1).integers(0, 255, (64, 80, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, form, **options)
    return out.getvalue()


# --- JPEG -------------------------------------------------------------------------------------------------------------


def frame(jpeg: bytes, offset: int, fields: str, *values: int, marker: int | None = None) -> bytes:
    """The JPEG with values overwritten at an offset into its frame header's segment, or with another frame marker."""
    at = re.search(rb"\xff[\xc0-\xc2]\0", jpeg).start()
    patched = bytearray(jpeg)
    patched[at + 1] = marker or jpeg[at + 1]
    struct.pack_into(fields, patched, at + offset, *values)
    return bytes(patched)


def without_segment(jpeg: bytes, marker: int) -> bytes:
    """The JPEG less every segment of one kind."""
    while (at := jpeg.find(bytes([0xFF, marker]), 2)) >= 0:
        jpeg = jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]
    return jpeg


def more_scans(progressive: bytes, times: int, disguise: bytes = b"") -> bytes:
    """Empty scans before the end marker: a few bytes each, that cost the decoder a pass over the whole image."""
    last = progressive.rindex(b"\xff\xda")
    header = progressive[last : last + 2 + int.from_bytes(progressive[last + 2 : last + 4], "big")]
    return progressive[:last] + disguise + progressive[last:-2] + header * times + progressive[-2:]


def jpegs() -> Iterator[tuple[str, str, bytes]]:
    good, scans = encoded("JPEG"), encoded("JPEG", progressive=True)
    sof, sos = re.search(rb"\xff[\xc0-\xc2]\0", good).start(), good.index(b"\xff\xda")
    for percent in (5, 30, 60, 99):
        yield f"jpeg cut at {percent} percent", "truncated", good[: len(good) * percent // 100]
    yield "progressive jpeg cut in half", "truncated", scans[: len(scans) // 2]
    yield "jpeg of 9,000 x 9,000 less its last byte", "truncated", frame(good, 5, ">HH", 9000, 9000)[:-1]
    yield "jpeg start alone", "truncated", good[:3]
    yield "jpeg cut in its frame header", "truncated", good[: sof + 6]
    yield "jpeg of 65,000 x 65,000", "too_large", frame(good, 5, ">HH", HUGE, HUGE)
    yield "jpeg of no height", "corrupt", frame(good, 5, ">H", 0)
    yield "jpeg of no width", "corrupt", frame(good, 7, ">H", 0)
    yield "jpeg of 12 bits", "unsupported_format", frame(good, 4, "B", 12)
    for count in (0, 2, 5, 255):
        yield f"jpeg of {count} components", "unsupported_format", frame(good, 9, "B", count)
    for name, marker in {"lossless": 0xC3, "hierarchical": 0xC5, "arithmetic lossless": 0xCB}.items():
        yield f"{name} jpeg", "unsupported_format", frame(good, 4, "B", 8, marker=marker)
    yield "jpeg with sampling factors of 0", "corrupt", frame(good, 11, "B", 0)
    yield "jpeg with sampling factors of 15", "corrupt", frame(good, 11, "B", 0xFF)
    yield "jpeg with two frames", "corrupt", good[:sos] + good[sof:]
    yield "jpeg without quantization tables", "corrupt", without_segment(good, 0xDB)
    yield "jpeg with a scan of unknown components", "corrupt", good[: sos + 5] + b"\x77" + good[sos + 6 :]
    yield "jpeg with a scan of 9 components", "corrupt", good[: sos + 4] + b"\x09" + good[sos + 5 :]
    yield "jpeg with an overfull Huffman table", "corrupt", good[:sos] + HUFFMAN_OF_4080 + good[sos:]
    yield "jpeg with a segment of no length", "corrupt", good[:sos] + b"\xff\xdb\0\0" + good[sos:]
    yield "jpeg without a frame", "corrupt", good[:sof] + good[sos:]
    yield "jpeg of 400,000 scans", "too_large", more_scans(scans, 400_000)
    big = frame(scans, 5, ">HH", 9000, 9000)
    yield "jpeg of 9,000 x 9,000 in 20 scans", "too_large", more_scans(big, 20)
    yield "jpeg of 200,000 comments", "too_large", good[:2] + b"\xff\xfe\0\2" * 200_000 + good[2:]
    yield "jpeg behind a megabyte of fill", "too_large", good[:2] + b"\xff" * MIB + good[2:]
    yield "jpeg with scans behind a false end", "too_large", more_scans(big, 20, b"\xff\xfe\0\x06\xff\xd9\xff\xd9")


HUFFMAN_OF_4080 = b"\xff\xc4\0\x13\0" + b"\xff" * 16


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, width: int = 8, height: int = 8, rest: bytes = b"\x08\2\0\0\0") -> bytes:
    """A PNG of 8 x 8 RGB pixels, unless its header says something else; the usual content if no chunks are given."""
    body = b"".join(chunks) or chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    header = chunk(b"IHDR", struct.pack(">II", width, height) + rest)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def pngs() -> Iterator[tuple[str, str, bytes]]:
    good = encoded("PNG")
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    bomb = zlib.compress(bytes(100 * MIB))
    yield "png start alone", "truncated", good[:8]
    yield "png cut in half", "truncated", good[: len(good) // 2]
    yield "png less its last byte", "truncated", good[:-1]
    yield "png whose content claims 2 GiB", "truncated", good[:33] + struct.pack(">I", 1 << 31) + good[37:]
    yield "png with a damaged checksum", "corrupt", good[:30] + b"\0\0" + good[32:]
    yield "png of 65,000 x 65,000", "too_large", png(width=HUGE, height=HUGE)
    yield "png of 2^31 - 1 pixels a side", "too_large", png(width=(1 << 31) - 1, height=(1 << 31) - 1)
    yield "png of no width", "corrupt", png(width=0)
    yield "png of 7 bits", "corrupt", png(rest=b"\7\2\0\0\0")
    yield "png of an unknown colour type", "corrupt", png(rest=b"\x08\5\0\0\0")
    yield "png of an unknown filter", "corrupt", png(rest=b"\x08\2\0\7\0")
    yield "png with a short header", "truncated", png()[:8] + chunk(b"IHDR", b"\0\0\0\x08") + chunk(b"IEND", b"")
    yield "png without a header", "corrupt", png()[:8] + pixels + chunk(b"IEND", b"")
    yield "png without content", "corrupt", png(chunk(b"tEXt", b"a\0b"))
    yield "png with garbage for content", "corrupt", png(chunk(b"IDAT", b"\x55" * 400))
    yield "png with too little content", "truncated", png(chunk(b"IDAT", zlib.compress(bytes(30))))
    yield "png with a palette of 9,000 bytes", "corrupt", png(chunk(b"PLTE", bytes(9000)), pixels, rest=b"\x08\3\0\0\0")
    yield "png with a text that unpacks to 100 MiB", "corrupt", png(chunk(b"zTXt", b"a\0\0" + bomb), pixels)
    yield "png with a text of 100 MiB in UTF-8", "corrupt", png(chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), pixels)
    texts = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MIB))) * 80
    yield "png with 80 texts of 1 MiB", "corrupt", png(texts, pixels)
    yield "png of 200,000 chunks", "too_large", png(chunk(b"abCd", b"") * 200_000, pixels)
    rows = zlib.compress(bytes(12_000 * 1501), 1)
    yield (
        "png bomb of 12,000 x 12,000",
        "too_large",
        png(chunk(b"IDAT", rows), width=12_000, height=12_000, rest=b"\1\0\0\0\0"),
    )


# --- GIF, WebP, AVIF --------------------------------------------------------------------------------------------------


def gifs() -> Iterator[tuple[str, str, bytes]]:
    good = encoded("GIF", "P")
    canvas = b",\0\0\0\0\x50\0\x40\0"
    assert canvas in good
    yield "gif start alone", "corrupt", good[:6]
    yield "gif cut in half", "truncated", good[: len(good) // 2]
    yield "gif of 65,000 x 65,000", "too_large", good[:6] + struct.pack("<HH", HUGE, HUGE) + good[10:]
    yield "gif with a frame beyond its canvas", "too_large", good.replace(canvas, b",\0\0\0\0\xff\xff\xff\xff")
    yield "gif with a frame far outside", "too_large", good.replace(canvas, b",\xff\xff\xff\xff\x50\0\x40\0")
    yield "gif with codes of 20 bits", "corrupt", good.replace(canvas + b"@\x08", canvas + b"@\x14")
    yield "gif without a frame", "corrupt", good[: good.index(canvas)] + b";"
    yield "gif of no size", "corrupt", good[:6] + bytes(4) + good[10:].replace(canvas, b"," + bytes(8))


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webps() -> Iterator[tuple[str, str, bytes]]:
    good = encoded("WEBP")
    canvas = (16_383).to_bytes(3, "little") * 2
    lossless = b"\x2f" + (16_383 | 16_383 << 14).to_bytes(4, "little")
    yield "webp less its last byte", "truncated", good[:-1]
    yield "webp that claims 4 GiB", "truncated", good[:4] + b"\xff\xff\xff\xff" + good[8:]
    yield "webp without its key frame", "corrupt", good[:23] + bytes(len(good) - 23)
    yield "webp with nothing inside", "corrupt", webp()
    yield "webp of 16,384 x 16,384 without loss", "too_large", webp((b"VP8L", lossless + bytes(40)))
    yield "webp with a canvas of 16,384 x 16,384", "too_large", webp((b"VP8X", bytes(4) + canvas), (b"VP8 ", good[20:]))
    yield "animated webp without frames", "corrupt", webp((b"VP8X", b"\2\0\0\0" + bytes(6)), (b"ANIM", bytes(6)))
    yield "webp of alpha alone", "corrupt", webp((b"VP8X", b"\x10\0\0\0" + bytes(6)), (b"ALPH", bytes(30)))


def avifs() -> Iterator[tuple[str, str, bytes]]:
    good = encoded("AVIF")
    size = b"ispe\0\0\0\0" + struct.pack(">II", 80, 64)
    assert size in good
    yield "avif cut in half", "corrupt", good[: len(good) // 2]
    yield "avif less its last byte", "truncated", good[:-1]
    yield "avif brand alone", "truncated", good[: int.from_bytes(good[:4], "big")]
    yield "avif of 65,000 x 65,000", "corrupt", good.replace(size, size[:8] + struct.pack(">II", HUGE, HUGE))
    yield "avif of 12,000 x 12,000", "too_large", good.replace(size, size[:8] + struct.pack(">II", 12_000, 12_000))
    yield "avif of no size", "corrupt", good.replace(size, size[:8] + bytes(8))
    yield "avif with a box of 2 GiB", "truncated", good[:32] + b"\x7f" + good[33:]
    yield "avif without its properties", "corrupt", good.replace(b"iprp", b"free")
    yield "avif with zeros for content", "corrupt", good[: good.index(b"mdat") + 4] + bytes(300)


# --- TIFF, BMP, PNM ---------------------------------------------------------------------------------------------------

_STRIP_AT = 8
TIFF_SAYS = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: _STRIP_AT, 277: 1, 278: 8, 279: 64}


def tiff(changes: dict[int, int | None], strip: bytes = bytes(64), following: int = 0) -> bytes:
    """A little-endian TIFF of 8 x 8 gray pixels, with tags changed or (None) taken out."""
    tags = {tag: value for tag, value in sorted((TIFF_SAYS | changes).items()) if value is not None}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    at = _STRIP_AT + len(strip)
    head = b"II*\0" + struct.pack("<I", at) + strip
    return head + struct.pack("<H", len(tags)) + directory + struct.pack("<I", following)


def tiffs() -> Iterator[tuple[str, str, bytes]]:
    yield "tiff cut in half", "truncated", encoded("TIFF")[:8000]
    yield "tiff start alone", "corrupt", b"II*\0"
    yield "tiff whose directory lies behind its end", "corrupt", b"II*\0\xff\xff\xff\x7f" + bytes(50)
    yield "tiff of 65,000 x 65,000", "too_large", tiff({256: HUGE, 257: HUGE})
    yield "tiff of 2^32 - 1 pixels a side", "too_large", tiff({256: 0xFFFFFFFF, 257: 0xFFFFFFFF})
    yield "tiff of no height", "corrupt", tiff({257: 0})
    yield "tiff without a width", "corrupt", tiff({256: None})
    yield "tiff without a strip", "corrupt", tiff({273: None})
    yield "tiff whose strip lies behind its end", "truncated", tiff({273: 1 << 30})
    yield "tiff of 64 bits", "corrupt", tiff({258: 64})
    yield "tiff of 1,000 samples", "corrupt", tiff({277: 1000})
    yield "tiff of an unknown compression", "corrupt", tiff({259: 31_337})
    yield "tiff of garbage as deflate", "corrupt", tiff({259: 8, 279: 64}, b"\x55" * 64)
    yield "tiff of garbage as LZW", "corrupt", tiff({259: 5}, b"\xff" * 64)
    yield "tiff of garbage as JPEG", "corrupt", tiff({259: 7}, b"\x55" * 64)
    bomb = zlib.compress(bytes(20 * MIB))
    yield "tiff of 65,000 x 65,000 as deflate", "too_large", tiff({259: 8, 256: HUGE, 257: HUGE, 279: len(bomb)}, bomb)
    yield (
        "tiff with tiles of 2^31 pixels a side",
        "corrupt",
        tiff({322: 1 << 31, 323: 1 << 31, 324: 8, 325: 64, 273: None}),
    )
    many = struct.pack("<HHII", 256, 4, 0xFFFFFFF0, 8)
    yield "tiff with a tag of 2^32 values", "corrupt", b"II*\0\x08\0\0\0\1\0" + many + bytes(4)
    yield "tiff that announces 65,535 tags", "corrupt", b"II*\0\x08\0\0\0\xff\xff" + bytes(100)
    yield "big tiff with a directory at 2^63", "corrupt", b"II+\0\x08\0\0\0" + b"\xff" * 7 + b"\x7f"


def bmp(
    size: tuple[int, int] = (8, 8), bits: int = 24, compression: int = 0, offset: int = 54, planes: int = 1
) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, *size, planes, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 300, 0, 0, offset) + header + bytes(192)


def bmps() -> Iterator[tuple[str, str, bytes]]:
    yield "bmp of 20,000 x 20,000", "too_large", bmp((20_000, 20_000))
    yield "bmp of 2^31 - 1 pixels a side", "too_large", bmp(((1 << 31) - 1, (1 << 31) - 1))
    yield "bmp of a negative width", "too_large", bmp((-8, 8))
    yield "bmp of 64 bits", "corrupt", bmp(bits=64)
    yield "bmp in run lengths", "unsupported_format", bmp(bits=8, compression=1)
    yield "bmp that holds a JPEG", "corrupt", bmp(compression=4)
    yield "bmp whose pixels lie behind its end", "truncated", bmp(offset=1 << 30)
    yield "bmp less its last byte", "truncated", bmp()[:-1]
    yield "bmp cut in its header", "truncated", bmp()[:30]


def pnms() -> Iterator[tuple[str, str, bytes]]:
    yield "pnm of 65,000 x 65,000", "too_large", b"P6 65000 65000 255 "
    yield "pnm of 10^400 pixels", "corrupt", b"P6 1" + b"0" * 400 + b" 8 255 "
    yield "pnm of no size", "corrupt", b"P6 0 8 255 "
    yield "pnm of a negative size", "corrupt", b"P6 8 -8 255 "
    yield "pnm with white at 0", "corrupt", b"P5 8 8 0 " + bytes(64)
    yield "pnm with white at 70,000", "corrupt", b"P5 8 8 70000 " + bytes(128)
    yield "pnm of 7 bits", "unsupported_format", b"P5 8 8 127 " + bytes(64)
    yield "pnm cut in half", "truncated", b"P6 8 8 255 " + bytes(90)
    yield "pnm that is one comment", "corrupt", b"P5 #" + b"x" * MIB
    yield "pnm with a megabyte of blanks before white", "corrupt", b"P5 8 8" + b" " * MIB + b"255 " + bytes(64)
    yield "pnm that is all blanks", "corrupt", b"P5 #\n" + b" " * MIB
    yield "pnm in text", "unsupported_format", b"P3 1 1 255 1 2 3"


# --- something else ---------------------------------------------------------------------------------------------------

SVG_LAUGHS = b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>'
SVG_READS = b'<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg><text>&x;</text></svg>'


def others() -> Iterator[tuple[str, str, bytes]]:
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("photo.jpg", encoded("JPEG"))
    with tarfile.open(fileobj=tar, mode="w") as folder:
        folder.addfile(tarfile.TarInfo("photo.jpg"))
    refused = {
        "svg whose entities explode": SVG_LAUGHS,
        "svg that reads a file": SVG_READS,
        "svg that runs a script": b"<svg><script>fetch('https://host')</script></svg>",
        "eps that runs a program": b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file\n",
        "eps with a preview": b"\xc5\xd0\xd3\xc6" + bytes(60),
        "pdf": b"%PDF-1.7\n/OpenAction",
        "psd": b"8BPS\0\1" + bytes(40),
        "icon": b"\0\0\1\0\1\0" + bytes(40),
        "jpeg xl": b"\xff\x0a" + bytes(50),
        "jpeg 2000": b"\xff\x4f\xff\x51" + bytes(50),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50),
        "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(50),
        "qoi": b"qoif" + bytes(50),
        "dds": b"DDS " + bytes(200),
        "hdr": b"#?RADIANCE\n",
    }
    strange = {
        "one byte": b"\xff",
        "zeros": bytes(MIB),
        "noise": np.random.default_rng(5).bytes(5000),
        "html": b"<!DOCTYPE html><html><body>404 <svg></svg></body></html>",
        "json": b'{"error": "AccessDenied"}',
        "zip": archive.getvalue(),
        "tar": tar.getvalue(),
        "gzipped svg": gzip.compress(SVG_READS),
        "pickle": pickle.dumps({"__reduce__": "os.system"}),
        "program": b"\x7fELF\2\1\1" + bytes(60),
        "script": b"#!/bin/sh\nid\n",
        "library of Windows": b"MZ\x90\0" + bytes(60),
        "text in UTF-16": "photo".encode("utf-16"),
        "text that starts like a BMP": b"BMW sells cars, and this is a caption",
        "fits": b"SIMPLE  =                    T" + bytes(50),
        "matroska": b"\x1aE\xdf\xa3" + bytes(40),
    }
    yield "no bytes", "empty", b""
    yield from ((name, "unsupported_format", data) for name, data in refused.items())
    yield from ((name, "not_image", data) for name, data in strange.items())


def all_kinds() -> dict[str, tuple[str, bytes]]:
    """What is wrong -> (the reason of the reject, the file)."""
    found = list(chain(jpegs(), pngs(), gifs(), webps(), avifs(), tiffs(), bmps(), pnms(), others()))
    kinds = {name: (reason, data) for name, reason, data in found}
    assert len(kinds) == len(found), "names must differ"
    return kinds


# --- pictures that carry a burden -------------------------------------------------------------------------------------


def swollen_exif(tags: int, size: int) -> bytes:
    """EXIF of which every tag claims the same `size` bytes for itself."""
    entries = b"".join(struct.pack("<HHII", 1000 + tag, 7, size, 8) for tag in range(tags))
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", tags) + entries + bytes(4)


def swollen_tiff(tags: int, size: int) -> bytes:
    """A TIFF of which every unknown tag claims the same `size` bytes for itself."""
    needed = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in TIFF_SAYS.items()]
    entries = needed + [struct.pack("<HHII", 1000 + tag, 7, size, 8) for tag in range(tags)]
    head = b"II*\0" + struct.pack("<I", 8 + size) + bytes(size)
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def heavy_kinds() -> dict[str, bytes]:
    """Files that are decoded, though something beside their pixels is made to cost."""
    jpeg, gif, pixels = encoded("JPEG"), encoded("GIF", "P"), chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    app1 = b"\xff\xe1\xff\xffExif\0\0"
    small = b"Exif\0\0" + swollen_exif(3000, 20_000)
    first = gif.index(b",\0\0\0\0\x50\0")
    return {
        "jpeg with exif of 60 MB": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + jpeg[2:],
        "jpeg with 100 exif blocks": jpeg[:2] + (app1 + bytes(65_527)) * 100 + jpeg[2:],
        "png with exif of 2 GB": png(chunk(b"eXIf", swollen_exif(4000, MIB // 2)), pixels),
        "tiff with tags of 3 GB": swollen_tiff(3000, MIB),
        "gif with a comment of 3 MiB": gif[:first] + b"!\xfe" + (b"\xff" + bytes(255)) * 12_000 + b"\0" + gif[first:],
        "gif behind a megabyte of garbage": gif[:first] + b"\1" * MIB + gif[first:],
        "jpeg that is also a zip": jpeg + b"PK\3\4" + bytes(500) + b"PK\5\6" + bytes(18),
        "jpeg that is also a script": jpeg[:2] + b"\xff\xfe\0\x1d<script>alert(1)</script>\n" + jpeg[2:],
    }
