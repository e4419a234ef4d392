"""A transaction as a transaction function sees it, with FoundationDB's limits enforced alike for all backends.

A backend supplies a `Backing`: the bare reads and writes of one attempt, without any check.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from types import CoroutineType, GeneratorType
from typing import Protocol, TypeVar

from dispatcher.store.errors import (
    InvertedRange,
    KeyOutsideRange,
    KeyTooLarge,
    TransactionTooLarge,
    TransactionTooOld,
    ValueTooLarge,
)
from dispatcher.store.limits import (
    KEY_BYTES,
    KEY_END,
    MUTATION_BYTES,
    READ_BYTES,
    TRANSACTION_BYTES,
    TRANSACTION_SECONDS,
    VALUE_BYTES,
)
from dispatcher.store.retry import EarlierTries

Result = TypeVar("Result")
KeyValue = tuple[bytes, bytes]
KeyRange = tuple[bytes, bytes]
"""A range of keys from `begin` up to, not including, `end`."""

_COUNTER = struct.Struct("<q")


class Backing(Protocol):
    """The port of one transaction's reads and writes in a backend of the store; callers check keys and values first."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """Return the value of a key, the transaction's own writes included; None for a missing key."""

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """Return at most `limit` pairs of [begin, end), the transaction's own writes included; limit 0 returns all."""

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        """Return the values of several keys as `get` does, in one round trip."""

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        """Return the pairs of several ranges as `get_range` does, in key order, in one round trip."""

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Fetch the keys and ranges of later reads in one round trip; do nothing in a store without round trips."""

    def read_next(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Fetch what the next transaction reads after this one's commit; do nothing in a store without round trips."""

    def set(self, key: bytes, value: bytes) -> None:
        """Write a key with its value."""

    def clear(self, key: bytes) -> None:
        """Remove a key and its value."""

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove all keys from `begin` up to, not including, `end`."""

    def add(self, key: bytes, amount: bytes) -> None:
        """Add an amount to the little-endian integer in a key, without a read that can conflict."""

    def get_read_version(self) -> int:
        """Return the version of the committed state that the transaction reads."""


class Reads(Protocol):
    """The read methods of a transaction, for functions that write nothing.

    Raises:
        KeyTooLarge, KeyOutsideRange, InvertedRange: for a wrong key or range.
        TransactionTooLarge, TransactionTooOld: over the limits; `run` repeats the latter.
    """

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key; None for a missing key."""

    def get_range(self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False) -> list[KeyValue]:
        """Return at most `limit` pairs (0: all) of [begin, end) in ascending or, with `reverse`, descending key order.

        All are held in memory.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of several keys, in their order, in about the time of one read."""

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0) -> list[list[KeyValue]]:
        """Return the pairs of several ranges as `get_range` does, in about the time of one read."""

    def get_read_version(self) -> int:
        """Return the version of the committed state that the reads see, which grows with every commit that writes."""


class Snapshot:
    """The snapshot reads of a transaction, which cannot cause a conflict but may be outdated at the commit."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key by a read that cannot cause a conflict; None for a missing key."""
        return self._transaction.get(key, snapshot=True)

    def get_range(self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False) -> list[KeyValue]:
        """Return the pairs of a range, as `Transaction.get_range`, by a read that cannot cause a conflict."""
        return self._transaction.get_range(begin, end, limit=limit, reverse=reverse, snapshot=True)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of several keys, as `Transaction.get_many`, by reads that cannot cause a conflict."""
        return self._transaction.get_many(keys, snapshot=True)

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0) -> list[list[KeyValue]]:
        """Return the pairs of several ranges, as `Transaction.get_ranges`, by reads that cannot cause a conflict."""
        return self._transaction.get_ranges(ranges, limit=limit, snapshot=True)

    def get_read_version(self) -> int:
        """Return the version of the committed state that the transaction reads."""
        return self._transaction.get_read_version()


class Transaction:
    """A serializable transaction: it reads its own writes, which are committed all at once or not at all.

    Valid until its function returns. Writes raise KeyTooLarge, ValueTooLarge, KeyOutsideRange, InvertedRange or
    TransactionTooLarge.
    """

    __slots__ = ("_backing", "_now", "_until", "earlier", "size_bytes")

    def __init__(
        self, backing: Backing, *, now: Callable[[], float] = time.monotonic, earlier: EarlierTries | None = None
    ) -> None:
        self._backing = backing
        self.earlier = earlier or EarlierTries()
        """The count of earlier tries of the transaction; any of them may have been committed."""
        self._now = now
        self._until = now() + TRANSACTION_SECONDS
        self.size_bytes = 0
        """The bytes of the transaction so far that count against `limits.TRANSACTION_BYTES`."""

    @property
    def snapshot(self) -> Snapshot:
        """The transaction's snapshot reads, which cannot conflict: values may change before the commit."""
        return Snapshot(self)

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """Return the value of a key; None for a missing key."""
        _check_key(key)
        self._begin_read(0 if snapshot else 2 * len(key) + READ_BYTES)
        return self._backing.get(key, snapshot)

    def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        """Return the values of several keys, in their order, in about the time of one read."""
        for key in keys:
            _check_key(key)
        self._begin_read(0 if snapshot else sum(2 * len(key) + READ_BYTES for key in keys))
        return self._backing.get_many(keys, snapshot)

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[KeyValue]:
        """Return at most `limit` pairs (0: all) of [begin, end) in ascending or, if `reverse`, descending key order."""
        self._check_ranges([(begin, end)], limit, snapshot)
        return self._backing.get_range(begin, end, limit, reverse, snapshot)

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0, snapshot: bool = False) -> list[list[KeyValue]]:
        """Return the pairs of several ranges as `get_range` does, in about the time of one read."""
        self._check_ranges(ranges, limit, snapshot)
        return self._backing.get_ranges(ranges, limit, snapshot)

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange] = (), *, limit: int = 0) -> None:
        """Announce keys and ranges that the function is about to read, so that the store fetches them all at once.

        Only a hint: the later reads return, conflict and count as without it, and see writes made in between. Of each
        range at most `limit` pairs are fetched; 0 is no limit. Pass generators: a store whose reads are no round trips
        never asks them for a key.
        """
        self.check_age()
        self._backing.read_ahead(keys, ranges, limit)

    def read_next(self, keys: Iterable[bytes], ranges: Iterable[KeyRange] = (), *, limit: int = 0) -> None:
        """Announce keys and ranges that the next transaction is likely to read, for a store that begins it early.

        Only a hint, as `read_ahead`; the store asks the generators for keys after the commit, if at all. A change of
        what was announced can be a conflict of the next transaction even if that does not read it.
        """
        self._backing.read_next(keys, ranges, limit)

    def get_read_version(self) -> int:
        """Return the version of the committed state that the transaction reads.

        It grows from a transaction to each that reads what the first one wrote. Of two others, the later can have the
        lower one, since a store may begin it early (`read_next`).
        """
        self.check_age()
        return self._backing.get_read_version()

    def set(self, key: bytes, value: bytes) -> None:
        """Write the value of a key, in place of an earlier value."""
        _check_key(key)
        _check_value(value)
        self._count(3 * len(key) + len(value) + MUTATION_BYTES)
        self._backing.set(key, value)

    def clear(self, key: bytes) -> None:
        """Remove a key; without effect when it is missing."""
        _check_key(key)
        self._count(4 * len(key) + MUTATION_BYTES)
        self._backing.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key from `begin` up to, not including, `end`."""
        _check_range(begin, end)
        self._count(2 * (len(begin) + len(end)) + MUTATION_BYTES)
        self._backing.clear_range(begin, end)

    def add(self, key: bytes, amount: int) -> None:
        """Add an amount to a counter without reading it, so that concurrent additions never conflict.

        A counter is 8 bytes, little-endian, signed, for `read_counter`; a missing one is 0, an overflow wraps around.
        """
        _check_key(key)
        self._count(3 * len(key) + _COUNTER.size + MUTATION_BYTES)
        self._backing.add(key, _COUNTER.pack(amount))

    @property
    def is_aging(self) -> bool:
        """Tell whether half of the 5 s that a transaction may take is over, so that more work needs another one."""
        return self._now() > self._until - TRANSACTION_SECONDS / 2

    def check_age(self) -> None:
        """Raise TransactionTooOld when the transaction is open for longer than 5 s (`limits.TRANSACTION_SECONDS`)."""
        if self._now() > self._until:
            raise TransactionTooOld(
                "The transaction was open for too long; do less in one", limit_seconds=TRANSACTION_SECONDS
            )

    def _check_ranges(self, ranges: Iterable[KeyRange], limit: int, snapshot: bool) -> None:
        size_bytes = 0
        for begin, end in ranges:
            _check_range(begin, end)
            size_bytes += len(begin) + len(end) + READ_BYTES
        if limit < 0:
            raise ValueError("A limit is 0 for no limit, or positive")
        self._begin_read(0 if snapshot else size_bytes)

    def _begin_read(self, size_bytes: int) -> None:
        self.check_age()
        self._count(size_bytes)

    def _count(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        if self.size_bytes > TRANSACTION_BYTES:
            self.check_size()

    def check_size(self) -> None:
        """Raise TransactionTooLarge when the transaction is larger than 10 MB (`limits.TRANSACTION_BYTES`)."""
        if self.size_bytes > TRANSACTION_BYTES:
            raise TransactionTooLarge(
                "The transaction is too large; do it in several",
                size_bytes=self.size_bytes,
                limit_bytes=TRANSACTION_BYTES,
            )

    def close(self) -> None:
        """Make every further read or write of the transaction raise RuntimeError, because its function has ended."""
        self._backing = _ENDED


def call(body: Callable[[Transaction], Result], transaction: Transaction) -> Result:
    """Run a transaction function, refuse a too old or large transaction, and return the result; the caller commits.

    Raises:
        TransactionTooOld: also when the function swallowed it; likewise TransactionTooLarge.
        Exception: any error of the function.
    """
    try:
        result = body(transaction)
    except StopIteration as error:  # which no future takes
        raise RuntimeError("The transaction function raised StopIteration") from error
    finally:
        transaction.close()
        transaction.earlier.note(slow=transaction.is_aging)
    transaction.check_age()
    transaction.check_size()
    if isinstance(result, CoroutineType | GeneratorType):
        result.close()
        raise TypeError("A transaction function is a plain function: neither a coroutine nor a generator")
    return result


def read_counter(value: bytes | None) -> int:
    """Return the number in the bytes of a counter that `Transaction.add` keeps; 0 for a missing counter."""
    return 0 if value is None else int.from_bytes(value, "little", signed=True)


def write_counter(number: int) -> bytes:
    """Return a signed 64-bit number as the bytes of a counter."""
    return _COUNTER.pack(number)


def added(value: bytes | None, amount: bytes) -> bytes:
    """Return a counter's bytes plus `amount`, as FoundationDB's ADD: as many bytes as `amount` has, wrapping around."""
    size = len(amount)
    total = int.from_bytes((value or b"")[:size], "little") + int.from_bytes(amount, "little")
    return (total & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _check_key(key: bytes) -> None:
    if not isinstance(key, bytes):
        raise TypeError("A key is bytes")
    if len(key) > KEY_BYTES:
        raise KeyTooLarge("The key is too large", size_bytes=len(key), limit_bytes=KEY_BYTES)
    if key >= KEY_END:
        raise KeyOutsideRange("A key begins with a byte below 255", key=key[:64])


def _check_range(begin: bytes, end: bytes) -> None:
    for key in (begin, end):
        if key != KEY_END:
            _check_key(key)
    if begin > end:
        raise InvertedRange("The range begins behind its end", begin=begin[:64], end=end[:64])


def _check_value(value: bytes) -> None:
    if not isinstance(value, bytes):
        raise TypeError("A value is bytes")
    if len(value) > VALUE_BYTES:
        raise ValueTooLarge("The value is too large", size_bytes=len(value), limit_bytes=VALUE_BYTES)


class _Ended:
    """The reads and writes (a `Backing`) of an ended transaction, each of which raises RuntimeError."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("The transaction has ended: use `tr` only inside its function")


_ENDED: Backing = _Ended()  # type: ignore[assignment]  # answers to every name, with an error
