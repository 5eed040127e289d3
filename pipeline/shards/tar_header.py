"""Tar headers: 512-byte blocks of every flavour, and the records of PAX extended headers.

Formats: POSIX.1-1988 ustar and POSIX.1-2001 pax (IEEE Std 1003.1, "pax"), GNU tar's extensions (base-256 numbers, long
names), and the V7 layout that they all extend. Offsets below are those of the ustar header.
"""

import zlib
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 512

REGULAR_TYPES: Final = frozenset((b"0", b"\0", b"7"))  # "7": contiguous files, which nobody stores differently
PAX_TYPES: Final = frozenset((b"x", b"X"))  # "X": Solaris' name for it
PAX_GLOBAL_TYPE: Final = b"g"
GNU_LONG_TYPES: Final = frozenset((b"L", b"K"))  # the content is the next member's name, or its link's target
# Types whose content is not where, or not what, a plain reader takes it for.
REFUSED_TYPES: Final = {b"S": "a GNU sparse file", b"M": "the continuation of a file of another volume"}

_PAX_LENGTH_DIGITS = 20  # as many as a 64-bit number can have


class Header(NamedTuple):
    """One header block.

    Attributes:
        name: as stored, in no known encoding.
        size: bytes of content that follow; meaningless for links, devices and folders.
        type: the type flag, one byte.
    """

    name: bytes
    size: int
    type: bytes


def parse_header(block: bytes) -> Header:
    """Read one header block of 512 bytes.

    Raises:
        ValueError: if its checksum or its size field is wrong.
    """
    stored = _number(block[148:156], "checksum")
    if stored != _checksum(block) and stored != _signed_checksum(block):
        raise ValueError(f"checksum must be {_checksum(block)}, got {stored}")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's magic is "ustar  ": it keeps times where the prefix is
        name = _text(block[345:500]) + b"/" + name
    type_ = block[156:157]
    if type_ == b"\0" and name.endswith(b"/"):
        type_ = b"5"  # V7 had no type for folders
    return Header(name, _number(block[124:136], "size"), type_)


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The `path` and `size` records of a PAX extended header; the last of a keyword wins.

    Args:
        data: records `b"<length> <keyword>=<value>\n"`, whose length counts itself and the line feed.

    Raises:
        ValueError: if a record is malformed, or describes a sparse file.
    """
    records, start, end = {}, 0, len(data.rstrip(b"\0"))
    while start < end:
        digits, space, _ = data[start : start + _PAX_LENGTH_DIGITS + 1].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[start : start + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length > end - start or not equals or record[-1:] != b"\n":
            raise ValueError(f"PAX record must be '<length> <keyword>=<value>', got {data[start : start + 40]!r}")
        if keyword.startswith(b"GNU.sparse.") or keyword == b"SCHILY.realsize":
            raise ValueError(f"a sparse file ({keyword.decode('ascii', 'replace')}), which is not supported")
        if keyword == b"size" and value and not (value.isdigit() and len(value) <= _PAX_LENGTH_DIGITS):
            raise ValueError(f"PAX size must be decimal digits, got {value[:40]!r}")
        if keyword in (b"path", b"size"):
            records[keyword] = value
        start += length
    return records


def long_name(header: Header, content: bytes) -> dict[bytes, bytes]:
    """What a GNU long name says, as a PAX record; nothing if it is the target of a link."""
    return {b"path": _text(content)} if header.type == b"L" else {}


def padding(size: int) -> int:
    """Bytes between the end of a content of `size` bytes and the next block."""
    return -size % BLOCK_BYTES


def _text(field: bytes) -> bytes:
    """A field up to its first NUL."""
    return field.partition(b"\0")[0]


def _number(field: bytes, what: str) -> int:
    """An octal field, or GNU's base-256 form of it (high bit set); blank means 0, as old writers left it.

    Raises:
        ValueError: if it is negative or no number.
    """
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ValueError(f"{what} must not be negative, got {field!r}")
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    digits = _text(field).strip(b" ")
    if digits and (not digits.isdigit() or max(digits) > ord("7")):
        raise ValueError(f"{what} must be octal digits, got {field!r}")
    return int(digits or b"0", 8)


def _checksum(block: bytes) -> int:
    """Sum of all bytes, those of the checksum field itself taken as spaces.

    The low half of Adler-32 (RFC 1950) is 1 + the sum modulo 65,521: exact for 256 bytes, five times as fast as sum().
    """
    halves = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    return halves - sum(block[148:156]) + 8 * ord(" ")


def _signed_checksum(block: bytes) -> int:
    """The same sum over signed bytes, as some old writers computed it: each byte from 128 on counts 256 less."""
    rest = block[:148] + block[156:]
    return _checksum(block) - 256 * sum(byte >= 128 for byte in rest)
