"""The reads and writes of one transaction on FoundationDB, by a transaction of its Python binding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.store.transaction import KeyRange, KeyValue

MOST_RANGES = 2
"""The most ranges read ahead that are kept once the transaction writes; for others, FoundationDB's client answers."""
_CHECKED = b"\xfe"
"""A key behind all others, which is never read. A commit is only checked if a later one might conflict with it."""


@dataclass(frozen=True, slots=True)
class _Announced:
    """The keys and ranges that the next transaction is likely to read, of each range the first `limit` pairs."""

    keys: Iterable[bytes]
    ranges: Iterable[KeyRange]
    limit: int


class FdbBacking:
    """The reads and writes of one transaction (a `Backing`), carried out by FoundationDB's binding.

    What was read ahead is kept here: keys until they are written, ranges until the first write, two until theirs.
    FoundationDB's client keeps it, too, and lays the transaction's own writes over it, but every question to the client
    takes two switches of threads.

    An *early* transaction has begun at the version of another's commit, before its function was known. Others may have
    committed since then, so that each of its reads can conflict: the announced ones, and a snapshot's, too.
    """

    def __init__(self, transaction: Any, binding: Any) -> None:
        self._transaction, self._binding = transaction, binding
        self._all = binding.StreamingMode.want_all
        self.is_early = False
        """Whether the transaction's version is older than the call of its function."""
        self.announced: _Announced | None = None
        """The reads that the transaction announced for the next one."""
        self._asked: Any = None
        self._values: dict[bytes, bytes | None] = {}
        """The values of the keys that were read ahead."""
        self._under_way: dict[bytes, Any] = {}
        """FoundationDB's reads of keys ahead, whose values were not waited for yet."""
        self._ranges: list[_Range] = []
        """The ranges that were read ahead; the last of them, once the transaction has written."""

    @property
    def committed_version(self) -> int:
        """Return the version of the transaction's commit, which is negative if there was nothing to commit."""
        version: int = self._transaction.get_committed_version()
        return version

    def begin_early(self, version: int, last: FdbBacking) -> None:
        """Begin at the version of a commit, with the reads under way that `last`, which it ended, has announced."""
        self.is_early = True
        self._transaction.set_read_version(version)
        self._transaction.add_write_conflict_key(_CHECKED)
        if last.announced is not None:
            self._begin_reads(last.announced.keys, last.announced.ranges, last.announced.limit)

    def ask_version(self) -> None:
        """Ask FoundationDB for the transaction's read version without waiting."""
        self._asked = self._transaction.get_read_version()  # kept, or else the binding takes the question back

    def commit(self) -> None:
        """Commit the transaction's writes."""
        self._transaction.commit().wait()

    def restart(self, code: int) -> FdbBacking:
        """Wait as long as FoundationDB wants after an error, and return the transaction, reset; raise a final error."""
        self._transaction.on_error(code).wait()
        return FdbBacking(self._transaction, self._binding)

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """Return the value of a key; None for a missing key."""
        if key in self._under_way:
            self._wait_for(key)
        if key not in self._values:
            value: bytes | None = self._reads(snapshot).get(key).value
            return value
        if not snapshot and not self.is_early:
            self._transaction.add_read_conflict_key(key)
        return self._values[key]

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """Return at most `limit` pairs of [begin, end); limit 0 returns all."""
        kept = next((kept_range for kept_range in self._ranges if kept_range.answers(begin, end, limit, reverse)), None)
        if kept is None:
            return _pairs(self._reads(snapshot).get_range(begin, end, limit, reverse, self._all))
        return self._cut(kept, limit, snapshot)

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        """Return the values of several keys in one round trip."""
        reads = self._reads(snapshot)
        # each is under way before the first is waited for
        known = self._values.keys() | self._under_way.keys()
        asked = {key: reads.get(key) for key in dict.fromkeys(keys) if key not in known}
        return [asked[key].value if key in asked else self.get(key, snapshot) for key in keys]

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        """Return the pairs of several ranges in one round trip."""
        reads, kept = self._reads(snapshot), {kept_range.begin: kept_range for kept_range in self._ranges}
        found: list[Any] = []
        for begin, end in ranges:
            found_range = kept.get(begin)
            is_known = found_range is not None and found_range.answers(begin, end, limit, reverse=False)
            found.append(found_range if is_known else reads.get_range(begin, end, limit, False, self._all))
        return [self._cut(part, limit, snapshot) if isinstance(part, _Range) else _pairs(part) for part in found]

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Read all given keys and ranges at once, unless they are known; only the later reads can cause a conflict."""
        self._begin_reads(keys, ranges, limit)
        # The last is waited for first: when it is there, so are the others, and nothing is waited for once more.
        for kept in reversed(self._ranges):
            _ = kept.pairs
        for key in reversed(tuple(self._under_way)):
            self._wait_for(key)

    def read_next(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Keep what the next transaction is likely to read, in case that it is begun early."""
        self.announced = _Announced(keys, ranges, limit)

    def set(self, key: bytes, value: bytes) -> None:
        """Write a key with its value."""
        self._forget(key)
        self._transaction.set(key, value)

    def clear(self, key: bytes) -> None:
        """Remove a key and its value."""
        self._forget(key)
        self._transaction.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove all keys from `begin` up to, not including, `end`."""
        for key in [cached for cached in (*self._values, *self._under_way) if begin <= cached < end]:
            self._forget(key)
        self._ranges = []
        self._transaction.clear_range(begin, end)

    def add(self, key: bytes, amount: bytes) -> None:
        """Add an amount to the little-endian integer in a key, without a read that can conflict."""
        self._forget(key)
        self._transaction.add(key, amount)

    def get_read_version(self) -> int:
        """Return the version of the committed state that the transaction reads."""
        version: int = self._transaction.get_read_version().wait()
        return version

    def _reads(self, snapshot: bool) -> Any:
        return self._transaction.snapshot if snapshot and not self.is_early else self._transaction

    def _begin_reads(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        reads = self._reads(snapshot=True)
        known = {(known_range.begin, known_range.end, known_range.limit) for known_range in self._ranges}
        for key in keys:
            if key not in self._values and key not in self._under_way:
                self._under_way[key] = reads.get(key)
        for begin, end in ranges:
            if (begin, end, limit) not in known:
                known.add((begin, end, limit))
                found = reads.get_range(begin, end, limit, False, self._all)
                self._ranges.append(_Range(begin, end, limit, found))

    def _cut(self, kept: _Range, limit: int, snapshot: bool) -> list[KeyValue]:
        """Return the first `limit` pairs of a range read ahead; as a read, they can conflict."""
        found = kept.pairs[: limit or None]
        if not snapshot and not self.is_early:
            is_cut = found and len(found) == limit
            self._transaction.add_read_conflict_range(kept.begin, found[-1][0] + b"\0" if is_cut else kept.end)
        return found

    def _wait_for(self, key: bytes) -> None:
        self._values[key] = self._under_way.pop(key).value

    def _forget(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._under_way.pop(key, None)
        self._ranges = [
            kept_range for kept_range in self._ranges[-MOST_RANGES:] if not kept_range.begin <= key < kept_range.end
        ]


@dataclass(eq=False, slots=True)
class _Range:
    """A range of keys that was read ahead, with its first `limit` key-value pairs, or all of them for limit 0."""

    begin: bytes
    end: bytes
    limit: int
    found: Any
    """The pairs as a tuple, or FoundationDB's read of them, which may be under way."""

    @property
    def pairs(self) -> list[KeyValue]:
        """Return the pairs, once they are there."""
        if not isinstance(self.found, tuple):
            self.found = tuple(_pairs(self.found))
        return list(self.found)

    def answers(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> bool:
        """Tell whether the pairs read ahead are enough for a read of the given range, limit and direction."""
        if (begin, end, reverse) != (self.begin, self.end, False):
            return False
        return not self.limit or 0 < limit <= self.limit or len(self.pairs) < self.limit


def _pairs(found: Iterable[Any]) -> list[KeyValue]:
    return [(pair.key, pair.value) for pair in found]
