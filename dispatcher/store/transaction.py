"""One transaction as a transaction function sees it.

The limits are enforced here, so they are the same in all backends. A backend gives a `Backing`: the bare reads and
writes of one attempt, without any check.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from types import CoroutineType, GeneratorType
from typing import Any, Protocol, TypeVar, cast

from dispatcher.store.errors import (
    InvertedRange,
    KeyOutsideRange,
    KeyTooLarge,
    TransactionTooLarge,
    TransactionTooOld,
    Unreadable,
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
"""[begin, end)."""

STAMP_BYTES = 10
"""A versionstamp: 8 bytes of commit version, 2 of order within it; FoundationDB's."""
_OFFSET = struct.Struct("<L")
_COUNTER = struct.Struct("<q")


class Backing(Protocol):
    """What a backend does for one attempt; keys and values are checked already."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """The value, own writes included."""

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """Pairs of [begin, end) in order, own writes included; all of them with limit 0."""

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        """As `get` of each, asked for at once."""

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        """As `get_range` of each, forwards, asked for at once."""

    def set(self, key: bytes, value: bytes) -> None:
        """Writes one pair."""

    def clear(self, key: bytes) -> None:
        """Removes one key."""

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Removes [begin, end)."""

    def add(self, key: bytes, amount: bytes) -> None:
        """Adds little-endian integers of the amount's size, without reading."""

    def set_versionstamped_key(self, key: bytes, value: bytes) -> None:
        """Writes a pair; the key ends with 4 bytes that say where in it the stamp goes."""

    def get_read_version(self) -> int:
        """The version of the state that the reads see."""


class Reads(Protocol):
    """The reading half of a transaction."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None when there is none.

        Raises: KeyTooLarge, KeyOutsideRange, Unreadable, TransactionTooLarge; TransactionTooOld (repeated by
        `run`).
        """

    def get_range(self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False) -> list[KeyValue]:
        """The pairs from `begin` up to, not including, `end`, in the order of their keys.

        At most `limit` of them, 0 for all; `reverse` begins at the end. All of them are held in memory.

        Raises: as `get`, and InvertedRange.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the keys, in their order, for the price of about one read.

        Raises: as `get`.
        """

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0) -> list[list[KeyValue]]:
        """The pairs of each range as `get_range` gives them, for the price of about one read.

        Raises: as `get_range`.
        """

    def get_read_version(self) -> int:
        """The version of the state that is read. Grows with every commit; of no meaning beyond one store."""


class Snapshot:
    """Reads of a transaction that cannot make it conflict: what they saw may have changed when it commits."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def get(self, key: bytes) -> bytes | None:
        """As `Transaction.get`."""
        return self._transaction.get(key, snapshot=True)

    def get_range(self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False) -> list[KeyValue]:
        """As `Transaction.get_range`."""
        return self._transaction.get_range(begin, end, limit=limit, reverse=reverse, snapshot=True)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `Transaction.get_many`."""
        return self._transaction.get_many(keys, snapshot=True)

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0) -> list[list[KeyValue]]:
        """As `Transaction.get_ranges`."""
        return self._transaction.get_ranges(ranges, limit=limit, snapshot=True)

    def get_read_version(self) -> int:
        """As `Transaction.get_read_version`."""
        return self._transaction.get_read_version()


class Transaction:
    """Reads and writes that happen all at once or not at all. Reads see the transaction's own writes.

    Valid until its function returns. Writes raise KeyTooLarge, ValueTooLarge, KeyOutsideRange, InvertedRange or
    TransactionTooLarge.
    """

    __slots__ = ("_backing", "_now", "_stamped", "_until", "earlier", "size_bytes")

    def __init__(
        self, backing: Backing, *, now: Callable[[], float] = time.monotonic, earlier: EarlierTries | None = None
    ) -> None:
        self._backing = backing
        self.earlier = earlier or EarlierTries()
        """The tries before this one. Any of them may have been committed."""
        self._now = now
        self._until = now() + TRANSACTION_SECONDS
        self._stamped: list[tuple[bytes, bytes]] = []
        self.size_bytes = 0
        """What counts against `limits.TRANSACTION_BYTES` so far."""

    @property
    def snapshot(self) -> Snapshot:
        """The same reads, but what they see may change before the commit without a conflict."""
        return Snapshot(self)

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """See `Reads.get`."""
        self.check_age()
        self._check_get(key, snapshot)
        return self._backing.get(key, snapshot)

    def get_many(self, keys: Sequence[bytes], *, snapshot: bool = False) -> list[bytes | None]:
        """See `Reads.get_many`."""
        self.check_age()
        for key in keys:
            self._check_get(key, snapshot)
        return self._backing.get_many(keys, snapshot)

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> list[KeyValue]:
        """See `Reads.get_range`."""
        self.check_age()
        self._check_get_range(begin, end, limit, snapshot)
        return self._backing.get_range(begin, end, limit, reverse, snapshot)

    def get_ranges(self, ranges: Sequence[KeyRange], *, limit: int = 0, snapshot: bool = False) -> list[list[KeyValue]]:
        """See `Reads.get_ranges`."""
        self.check_age()
        for begin, end in ranges:
            self._check_get_range(begin, end, limit, snapshot)
        return self._backing.get_ranges(ranges, limit, snapshot)

    def get_read_version(self) -> int:
        """See `Reads.get_read_version`."""
        self.check_age()
        return self._backing.get_read_version()

    def set(self, key: bytes, value: bytes) -> None:
        """Writes the value of a key, whatever was there."""
        _check_key(key)
        _check_value(value)
        self._count(3 * len(key) + len(value) + MUTATION_BYTES)
        self._backing.set(key, value)

    def clear(self, key: bytes) -> None:
        """Removes a key, if it is there."""
        _check_key(key)
        self._count(4 * len(key) + MUTATION_BYTES)
        self._backing.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Removes every key from `begin` up to, not including, `end`."""
        _check_range(begin, end)
        self._count(2 * (len(begin) + len(end)) + MUTATION_BYTES)
        self._backing.clear_range(begin, end)

    def add(self, key: bytes, amount: int) -> None:
        """Adds to a counter (`read_counter` reads it) without reading it: two of them never conflict.

        A counter is 8 bytes, little-endian, signed; a missing one is 0, an overflow wraps around.
        """
        _check_key(key)
        self._count(3 * len(key) + _COUNTER.size + MUTATION_BYTES)
        self._backing.add(key, _COUNTER.pack(amount))

    def set_versionstamped_key(self, key: bytes, value: bytes) -> None:
        """Writes a pair whose key holds the commit's own version: later commits sort behind earlier ones.

        `key` is what `keys.Space.pack_with_versionstamp` makes: 10 bytes of room, and at the end 4 bytes,
        little-endian, that say where the room begins. Until the commit the key is unknown, and reads of where it
        may be raise Unreadable. An unknown commit that is repeated writes a second key: guard it by a natural key.
        """
        low, high = _stamped_range(key)
        _check_key(low)
        _check_value(value)
        self._count(3 * len(key) + len(value) + MUTATION_BYTES)
        self._stamped.append((low, high + b"\0"))
        self._backing.set_versionstamped_key(key, value)

    @property
    def is_aging(self) -> bool:
        """Whether half of the time that it may be open is over: what can wait is for another."""
        return self._now() > self._until - TRANSACTION_SECONDS / 2

    def check_age(self) -> None:
        """Raises: TransactionTooOld. Backends that commit later than the function returns ask again."""
        if self._now() > self._until:
            raise TransactionTooOld(
                "The transaction was open for too long; do less in one", limit_seconds=TRANSACTION_SECONDS
            )

    def _check_get(self, key: bytes, snapshot: bool) -> None:
        _check_key(key)
        if not snapshot:
            self._count(2 * len(key) + READ_BYTES)
        if self._stamped:
            self._check_readable(key, key + b"\0")

    def _check_get_range(self, begin: bytes, end: bytes, limit: int, snapshot: bool) -> None:
        _check_range(begin, end)
        if limit < 0:
            raise ValueError("A limit is 0 for no limit, or positive")
        if not snapshot:
            self._count(len(begin) + len(end) + READ_BYTES)
        if self._stamped:
            self._check_readable(begin, end)

    def _count(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self.check_size()

    def check_size(self) -> None:
        """Raises: TransactionTooLarge."""
        if self.size_bytes > TRANSACTION_BYTES:
            raise TransactionTooLarge(
                "The transaction is too large; do it in several",
                size_bytes=self.size_bytes,
                limit_bytes=TRANSACTION_BYTES,
            )

    def _check_readable(self, begin: bytes, end: bytes) -> None:
        for low, high in self._stamped:
            if low < end and begin < high:
                raise Unreadable("A versionstamped key is known only after the commit; read it in the next transaction")

    def watch(self, written: Callable[[bytes, bytes], None]) -> None:
        """Tells of every pair that is set from now on; for tests, and for histories of what was committed."""
        self._backing = cast(Backing, _Watched(self._backing, written))

    def close(self) -> None:
        """Takes the backing away: the function has ended."""
        self._backing = _ENDED


class _Watched:
    """A `Backing` that tells what is set."""

    __slots__ = ("_backing", "_written")

    def __init__(self, backing: Backing, written: Callable[[bytes, bytes], None]) -> None:
        self._backing = backing
        self._written = written

    def set(self, key: bytes, value: bytes) -> None:
        self._backing.set(key, value)
        self._written(key, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backing, name)


def call(body: Callable[[Transaction], Result], transaction: Transaction) -> Result:
    """Runs a transaction function to its end; for backends.

    Raises: what the function raises; TransactionTooLarge and TransactionTooOld also when it swallowed them.
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
    """The number in a counter that `Transaction.add` made; 0 when there is none."""
    return 0 if value is None else int.from_bytes(value, "little", signed=True)


def write_counter(number: int) -> bytes:
    """A counter with this number; within 64 bits, signed."""
    return _COUNTER.pack(number)


def added(value: bytes | None, amount: bytes) -> bytes:
    """What FoundationDB's atomic ADD makes of a value: cut or filled to the amount's size, wrapping around."""
    size = len(amount)
    total = int.from_bytes((value or b"")[:size], "little") + int.from_bytes(amount, "little")
    return (total & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def stamped(key: bytes, stamp: bytes) -> bytes:
    """The key of `set_versionstamped_key` with its stamp in place and without the offset."""
    (offset,) = _OFFSET.unpack(key[-_OFFSET.size :])
    return key[:offset] + stamp + key[offset + STAMP_BYTES : -_OFFSET.size]


def _stamped_range(key: bytes) -> tuple[bytes, bytes]:
    """The first and the last key that this one may become."""
    if not isinstance(key, bytes):
        raise TypeError("A key is bytes")
    room = len(key) - _OFFSET.size - STAMP_BYTES
    if room < 0 or _OFFSET.unpack(key[-_OFFSET.size :])[0] > room:
        raise KeyOutsideRange("The key has no room for its versionstamp", key=key[:64])
    return stamped(key, b"\0" * STAMP_BYTES), stamped(key, b"\xff" * STAMP_BYTES)


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
    """In place of the backing once the function has returned."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("The transaction has ended: use `tr` only inside its function")


_ENDED: Backing = _Ended()  # type: ignore[assignment]  # answers to every name, with an error
