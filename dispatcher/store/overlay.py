"""An in-memory buffer of uncommitted writes, through which a transaction reads its store."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from dispatcher.store.transaction import KeyValue


class Overlay:
    """A buffer of uncommitted writes to a store: each written key's last value, None for a removed key."""

    __slots__ = ("_before", "_keys", "size_bytes", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] = []
        self._before: list[tuple[bytes, bool, bytes | None]] = []
        """The undo log since the last `keep`: changed key, whether the overlay had the key, and its value before."""
        self.size_bytes = 0
        """The approximate bytes of all keys and values written to the overlay so far."""

    @property
    def changed(self) -> bool:
        """Tell whether the overlay was written to since the last `keep` or `undo`."""
        return bool(self._before)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Buffer a key's new value, or its removal by the value None."""
        there = key in self.values
        if not there:
            insort(self._keys, key)
        self._before.append((key, there, self.values.get(key)))
        self.values[key] = value
        self.size_bytes += len(key) + len(value or b"")

    def between(self, begin: bytes, end: bytes) -> Sequence[bytes]:
        """Return the keys of [begin, end) that the overlay writes or removes, in order."""
        first = bisect_left(self._keys, begin)
        if first == len(self._keys) or self._keys[first] >= end:
            return ()
        return self._keys[first : bisect_left(self._keys, end, first)]

    def over(self, pairs: Iterable[KeyValue], keys: Sequence[bytes], *, limit: int, reverse: bool) -> list[KeyValue]:
        """Return a range's stored `pairs` with the buffered changes of `keys` applied: at most `limit`, or all for 0.

        The store's pairs are in the wanted order, and are `limit` more than the keys that the overlay removes, if there
        are so many.
        """
        merged: dict[bytes, bytes | None] = dict(pairs)
        merged.update((key, self.values[key]) for key in keys)
        found = [(key, merged[key]) for key in sorted(merged, reverse=reverse)]
        present = [(key, value) for key, value in found if value is not None]
        return present[:limit] if limit else present

    def removed(self, keys: Sequence[bytes]) -> int:
        """Return how many of the given keys the overlay removes."""
        return sum(self.values[key] is None for key in keys)

    def keep(self) -> None:
        """Accept all writes since the last `keep`; a later `undo` does not revert accepted writes."""
        self._before.clear()

    def undo(self) -> None:
        """Revert all writes since the last `keep`."""
        for key, there, value in reversed(self._before):
            if there:
                self.values[key] = value
            else:
                del self.values[key]
                del self._keys[bisect_left(self._keys, key)]
        self._before.clear()
