"""The packing of tuples into keys by FoundationDB's tuple layer, with a fast path for the ledger's keys.

Tuples sort as their keys do.
"""

from __future__ import annotations

from typing import TypeGuard

from dispatcher.store import tuples
from dispatcher.store.tuples import Element

MOST_CHILDREN = 4096
"""The most subspaces that one space keeps in its cache."""
_SMALL = tuple(tuples.pack((number,)) for number in range(256))
_LARGE = 2**64 - 1
"""The smallest integer that is packed together with its length: the largest number of 8 bytes."""


class Space:
    """A subspace as in FoundationDB: all keys that begin with one packed tuple; immutable and thread-safe."""

    __slots__ = ("_children", "prefix")

    def __init__(self, elements: tuple[Element, ...] = (), *, prefix: bytes = b"") -> None:
        self.prefix = prefix + tuples.pack(elements)
        """The packed tuple with which every key of the space begins."""
        self._children: dict[str, Space] = {}

    def __getitem__(self, name: Element) -> Space:
        """Return the subspace whose tuple is the space's with one more element; cached when the element is a string."""
        if type(name) is not str:  # 1, 1.0 and True are equal and have different keys
            return Space((name,), prefix=self.prefix)
        child = self._children.get(name)
        if child is None:
            child = Space((name,), prefix=self.prefix)
            if len(self._children) >= MOST_CHILDREN:
                self._children.clear()
            self._children[name] = child
        return child

    def pack(self, elements: tuple[Element, ...] = ()) -> bytes:
        """Pack a tuple into a key that begins with the space's prefix.

        Raises:
            ValueError: when an element has a type that a key cannot hold.
        """
        key = self.prefix
        if _are_texts(elements):
            texts = "\0\x02".join(elements)
            if texts.count("\0") == len(elements) - 1:
                return key + b"\x02" + texts.encode() + b"\0"
        for element in elements:
            kind = type(element)
            if kind is str:
                text = element.encode()
                key += b"\x02%b\0" % (text if b"\0" not in text else text.replace(b"\0", b"\0\xff"))
            elif kind is int and element >= 0:
                key += _SMALL[element] if element < 256 else _packed_int(element)
            elif kind is bytes:
                key += b"\x01" + element.replace(b"\0", b"\0\xff") + b"\0"
            else:
                key += tuples.pack((element,))
        return key

    def unpack(self, key: bytes) -> tuple[Element, ...]:
        """Unpack a key of the space, and return the elements that follow the space's own tuple.

        Raises:
            ValueError: for a key of another space.
        """
        if not key.startswith(self.prefix):
            raise ValueError("The key is of another space")
        texts = key[len(self.prefix) :]
        if texts[:1] == b"\x02" and texts[-1:] == b"\0" and texts.count(b"\0") == texts.count(b"\0\x02") + 1:
            return tuple(texts[1:-1].decode().split("\0\x02"))
        return tuples.unpack(key, len(self.prefix))

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


def _are_texts(elements: tuple[Element, ...]) -> TypeGuard[tuple[str, ...]]:
    for element in elements:
        if type(element) is not str:
            return False
    return bool(elements)


def _packed_int(number: int) -> bytes:
    if number >= _LARGE:
        return tuples.pack((number,))
    size = (number.bit_length() + 7) >> 3
    return (0x14 + size).to_bytes(1, "big") + number.to_bytes(size, "big")
