"""Keys as FoundationDB's tuple layer packs them: tuples of texts, bytes and integers, which sort as their keys do.

The format is the one that all of FoundationDB's bindings share, so any of its tools reads the keys. It is written here
for the three kinds of elements that the ledger's keys have. So a dispatcher on SQLite needs nothing of FoundationDB.
"""

from __future__ import annotations

from typing import Any

Element = Any
"""The type of a key's element: a text, bytes, or an integer from 0 to below `_TOO_LARGE`."""

_BYTES, _TEXT, _ZERO = 0x01, 0x02, 0x14
"""The type codes; that of an integer is `_ZERO` and its length in bytes."""
_INTEGER_BYTES = 8
_TOO_LARGE = 2**64 - 1
"""The smallest integer for which the format has another type code."""
_SMALL = (b"\x14", *(bytes((_ZERO + 1, number)) for number in range(1, 256)))
"""The packed integers of one byte at most."""


class Space:
    """A subspace as in FoundationDB: all keys that begin with one packed tuple; immutable and thread-safe."""

    __slots__ = ("prefix",)

    def __init__(self, elements: tuple[Element, ...] = (), *, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.prefix = self.pack(elements)
        """The packed tuple with which every key of the space begins."""

    def __getitem__(self, name: Element) -> Space:
        """Return the subspace whose tuple is the space's with one more element."""
        return Space((name,), prefix=self.prefix)

    def pack(self, elements: tuple[Element, ...] = ()) -> bytes:
        """Pack a tuple into a key that begins with the space's prefix.

        Raises:
            ValueError: when an element is none that a key holds.
        """
        key = self.prefix
        for element in elements:
            kind = type(element)
            if kind is str:
                key += b"\x02" + element.encode().replace(b"\0", b"\0\xff") + b"\0"
            elif kind is int:
                key += _SMALL[element] if 0 <= element < 256 else _packed_integer(element)
            elif kind is bytes:
                key += b"\x01" + element.replace(b"\0", b"\0\xff") + b"\0"
            else:
                raise ValueError(f"Unsupported in a key: {kind.__name__}")
        return key

    def unpack(self, key: bytes) -> tuple[Element, ...]:
        """Unpack a key of the space, and return the elements that follow the space's own tuple.

        Raises:
            ValueError: for a key of another space, and for bytes that are no packed tuple.
        """
        if not key.startswith(self.prefix):
            raise ValueError("The key is of another space")
        texts = key[len(self.prefix) :]
        if texts[:1] == b"\x02" and texts[-1:] == b"\0" and texts.count(b"\0") == texts.count(b"\0\x02") + 1:
            return tuple(texts[1:-1].decode().split("\0\x02"))
        elements, at = list[Element](), len(self.prefix)
        while at < len(key):
            element, at = _unpacked(key, at)
            elements.append(element)
        return tuple(elements)

    def range(self, elements: tuple[Element, ...] = ()) -> tuple[bytes, bytes]:
        """Return the begin and end of the range of keys whose tuples begin with the given elements and have more."""
        packed = self.pack(elements)
        return packed + b"\0", packed + b"\xff"

    def behind(self, elements: tuple[Element, ...], after: tuple[Element, ...]) -> tuple[bytes, bytes]:
        """Return the range of the keys whose tuples extend `elements` and sort after the tuple `elements + after`.

        Where `after` is empty, or has only empty elements, the range has all of them: so begins a walk over a space.
        """
        begin, end = self.range(elements)
        return self.pack((*elements, *after)) + b"\0" if any(after) else begin, end

    def contains(self, key: bytes) -> bool:
        """Tell whether a key lies in the space, that is, begins with the space's prefix."""
        return key.startswith(self.prefix)


def _packed_integer(number: int) -> bytes:
    if not 0 <= number < _TOO_LARGE:
        raise ValueError(f"Unsupported in a key: the integer {number}")
    size = (number.bit_length() + 7) >> 3
    return (_ZERO + size).to_bytes(1, "big") + number.to_bytes(size, "big")


def _unpacked(key: bytes, at: int) -> tuple[Element, int]:
    """Unpack the element at an offset of a key, and return it with the offset behind it."""
    code, at = key[at], at + 1
    if code in (_BYTES, _TEXT):
        end = key.index(b"\0", at)
        while key[end + 1 : end + 2] == b"\xff":  # a zero byte within is packed as 0, 255
            end = key.index(b"\0", end + 2)
        content = key[at:end].replace(b"\0\xff", b"\0")
        return content if code == _BYTES else content.decode(), end + 1
    end = at + code - _ZERO
    if not at <= end <= min(at + _INTEGER_BYTES, len(key)):
        raise ValueError(f"No element of a key begins with {code} here")
    return int.from_bytes(key[at:end], "big"), end
