"""The encoding of FoundationDB's tuple layer: tuples become bytes that sort as the tuples do.

The format is the one that all of FoundationDB's bindings share, so any of its tools reads the keys. It is written here
so that a dispatcher on SQLite needs nothing of FoundationDB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

Element = Any
"""The type of a tuple's element: None, bytes, str, int, float, bool, UUID, or a tuple of these."""

_NULL, _BYTES, _TEXT, _TUPLE, _ZERO = 0x00, 0x01, 0x02, 0x05, 0x14
_DOUBLE, _FALSE, _TRUE, _UUID = 0x21, 0x26, 0x27, 0x30
_LONG, _NEGATIVE_LONG = 0x1D, 0x0B
"""The type codes of integers that are packed with their length in bytes."""
_LARGE = 2**64 - 1
"""The smallest integer that is packed together with its length: the largest number of 8 bytes."""
_EIGHT = 8
_SIGN = 0x80


def pack(elements: tuple[Element, ...]) -> bytes:
    """Pack a tuple into bytes that sort as the tuple does.

    Raises:
        ValueError: when an element has a type that has no place in a key, or is a number of more than 255 bytes.
    """
    return b"".join(map(_packed, elements))


def unpack(packed: bytes, at: int = 0) -> tuple[Element, ...]:
    """Unpack the tuple that fills the bytes from the offset `at` to their end.

    Raises:
        ValueError: when the bytes are no packed tuple.
    """
    elements: list[Element] = []
    try:
        while at < len(packed):
            element, at = _unpacked(packed, at)
            elements.append(element)
    except (IndexError, struct.error) as error:
        raise ValueError("The bytes end within an element of a tuple") from error
    return tuple(elements)


def _packed(element: Element) -> bytes:
    if element is None:
        return b"\0"
    packer = _PACKERS.get(type(element)) or next(
        (_PACKERS[kind] for kind in _PACKERS if isinstance(element, kind)), None
    )
    if packer is None:
        raise ValueError(f"Unsupported in a key: {type(element).__name__}")
    return packer(element)


def _packed_nested(elements: tuple[Element, ...]) -> bytes:
    inner = (b"\0\xff" if element is None else _packed(element) for element in elements)
    return bytes((_TUPLE,)) + b"".join(inner) + b"\0"


def _packed_int(number: int) -> bytes:
    size = (number.bit_length() + 7) // 8
    if number >= 0:
        digits = number.to_bytes(size, "big")
        return bytes((_LONG, size)) + digits if number >= _LARGE else bytes((_ZERO + size,)) + digits
    digits = (number + (1 << 8 * size) - 1).to_bytes(size, "big")  # the complement, so that -2 sorts before -1
    return bytes((_NEGATIVE_LONG, size ^ 0xFF)) + digits if -number >= _LARGE else bytes((_ZERO - size,)) + digits


def _packed_float(number: float) -> bytes:
    return bytes((_DOUBLE,)) + _sortable(struct.pack(">d", number), negative=lambda first: first & _SIGN)


def _sortable(double: bytes, *, negative: Callable[[int], int]) -> bytes:
    """Flip the bits of a packed float, or flip them back, so that its bytes sort as the number does."""
    if negative(double[0]):
        return bytes(byte ^ 0xFF for byte in double)
    return bytes((double[0] ^ _SIGN,)) + double[1:]


def _ended(content: bytes) -> bytes:
    return content.replace(b"\0", b"\0\xff") + b"\0"


_PACKERS: dict[type, Callable[[Any], bytes]] = {
    bytes: lambda content: b"\x01" + _ended(content),
    str: lambda text: b"\x02" + _ended(text.encode()),
    int: _packed_int,
    float: _packed_float,
    bool: lambda truth: b"\x27" if truth else b"\x26",
    UUID: lambda uuid: b"\x30" + uuid.bytes,
    tuple: _packed_nested,
}


def _unpacked(packed: bytes, at: int) -> tuple[Element, int]:
    """Unpack the element at an offset of the bytes, and return it with the offset behind it."""
    code, at = packed[at], at + 1
    if code in _CONSTANTS:
        return _CONSTANTS[code], at
    if code in (_BYTES, _TEXT):
        content, at = _content(packed, at)
        return content.decode() if code == _TEXT else content, at
    if code == _TUPLE:
        return _nested(packed, at)
    if code == _DOUBLE:
        double = _sortable(packed[at : at + 8], negative=lambda first: not first & _SIGN)
        return struct.unpack(">d", double)[0], at + 8
    if code == _UUID:
        return UUID(bytes=packed[at : at + 16]), at + 16
    return _number(packed, code, at)


_CONSTANTS: dict[int, Element] = {_NULL: None, _FALSE: False, _TRUE: True}


def _content(packed: bytes, at: int) -> tuple[bytes, int]:
    """Unpack a text or bytes element up to its final zero byte; a zero byte inside is packed as 0, 255."""
    end = packed.index(b"\0", at)
    while packed[end + 1 : end + 2] == b"\xff":
        end = packed.index(b"\0", end + 2)
    return packed[at:end].replace(b"\0\xff", b"\0"), end + 1


def _nested(packed: bytes, at: int) -> tuple[Element, int]:
    elements: list[Element] = []
    while packed[at] != _NULL or packed[at + 1 : at + 2] == b"\xff":
        if packed[at] == _NULL:
            elements.append(None)
            at += 2
        else:
            element, at = _unpacked(packed, at)
            elements.append(element)
    return tuple(elements), at + 1


def _number(packed: bytes, code: int, at: int) -> tuple[int, int]:
    negative, size = code < _ZERO, abs(code - _ZERO)
    if code in (_LONG, _NEGATIVE_LONG):
        size, at = packed[at] ^ (0xFF if negative else 0), at + 1
    elif size > _EIGHT:
        raise ValueError(f"No element of a tuple begins with {code}")
    digits = packed[at : at + size]
    if len(digits) < size:
        raise IndexError
    number = int.from_bytes(digits, "big")
    return number - (1 << 8 * size) + 1 if negative else number, at + size
