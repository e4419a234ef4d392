"""Writes that nobody else sees yet, laid over a store's ordered pairs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from dispatcher.store.transaction import KeyValue


class Overlay:
    """The last value of every key that was written; None for one that was removed."""

    __slots__ = ("_before", "_keys", "size_bytes", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._keys: list[bytes] = []
        self._before: list[tuple[bytes, bool, bytes | None]] = []
        """Since the last `keep`: a key, whether it was here, and what its value was."""
        self.size_bytes = 0
        """Of all that was ever put, about."""

    @property
    def changed(self) -> bool:
        """Whether anything was put since the last `keep`."""
        return bool(self._before)

    def put(self, key: bytes, value: bytes | None) -> None:
        """Writes a pair, or removes it."""
        there = key in self.values
        if not there:
            insort(self._keys, key)
        self._before.append((key, there, self.values.get(key)))
        self.values[key] = value
        self.size_bytes += len(key) + len(value or b"")

    def between(self, begin: bytes, end: bytes) -> Sequence[bytes]:
        """The keys of [begin, end) that were written or removed, in order."""
        first = bisect_left(self._keys, begin)
        if first == len(self._keys) or self._keys[first] >= end:
            return ()
        return self._keys[first : bisect_left(self._keys, end, first)]

    def over(self, pairs: Iterable[KeyValue], keys: Sequence[bytes], *, limit: int, reverse: bool) -> list[KeyValue]:
        """The pairs of a range, as they are with what was done to these of its keys; all of them with limit 0.

        Those below are in the order that is wanted, and there are `limit` of them, if there are so many, besides
        those that are removed here.
        """
        merged: dict[bytes, bytes | None] = dict(pairs)
        merged.update((key, self.values[key]) for key in keys)
        found = [(key, merged[key]) for key in sorted(merged, reverse=reverse)]
        standing = [(key, value) for key, value in found if value is not None]
        return standing[:limit] if limit else standing

    def removed(self, keys: Sequence[bytes]) -> int:
        """How many of these keys are removed."""
        return sum(self.values[key] is None for key in keys)

    def keep(self) -> None:
        """What was put until now stays."""
        self._before.clear()

    def undo(self) -> None:
        """Takes back what was put since the last `keep`."""
        for key, there, value in reversed(self._before):
            if there:
                self.values[key] = value
            else:
                del self.values[key]
                del self._keys[bisect_left(self._keys, key)]
        self._before.clear()
