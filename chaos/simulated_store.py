"""The in-memory store of simulations and tests: optimistic transactions as in FoundationDB, and injected faults.

A transaction function reads the committed state of its start and buffers its writes. Before it commits, other
transactions may commit: if one of them wrote a key that the function read, the function conflicts, as FoundationDB's
resolver would decide. Committed state lives on a `Disk`, so a crashed database can be opened again.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from coditect.aio.network import BOTH, NetworkPath, Way
from dispatcher.store.errors import (
    CommitUnknown,
    StoreFailed,
    StoreUnavailable,
    TransactionConflict,
    TransactionTooOld,
)
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.overlay import Overlay
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.transaction import KeyRange, KeyValue, Reads, Transaction, added, call

Result = TypeVar("Result")
Mutation = tuple[str, bytes, bytes]

MAX_REMEMBERED_COMMITS = 10_000
"""The number of last commits that are kept for conflict checks; a transaction from before them is too old."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults that a simulated store injects: probabilities from 0 to 1, and ranges of delays."""

    conflict: float = 0.0
    """The probability that a commit without a conflict is refused as a conflict."""
    unknown_committed: float = 0.0
    """The probability that a commit is applied but raises CommitUnknown."""
    unknown_lost: float = 0.0
    """The probability that a commit is not applied and raises CommitUnknown."""
    too_old: float = 0.0
    """The probability that a commit raises TransactionTooOld."""
    latency_seconds: tuple[float, float] = (0.0, 0.0)
    """The least and most network delay of each of a transaction's three ways: to the reads, to the commit, back."""
    read_seconds: tuple[float, float] = (0.0, 0.0)
    """The least and most delay of each read of committed state; keys read at once are one read."""


NO_FAULTS = Faults()


@dataclass(slots=True)
class Disk:
    """The committed state of a simulated store, which outlives a crashed database; for one open database at a time."""

    keys: list[bytes] = field(default_factory=list)
    values: dict[bytes, bytes] = field(default_factory=dict)
    version: int = 0
    commits: deque[tuple[int, list[KeyRange]]] = field(default_factory=deque)

    def between(self, begin: bytes, end: bytes) -> list[bytes]:
        """Return the committed keys of [begin, end), in order."""
        return self.keys[bisect_left(self.keys, begin) : bisect_left(self.keys, end)]

    def check(self, reads: list[KeyRange], read_version: int) -> None:
        """Raise TransactionConflict if a commit after the read version wrote into the ranges that a transaction read.

        Raises:
            TransactionConflict: when a commit did.
            TransactionTooOld: when the commits to compare are forgotten.
        """
        if read_version < self.version and self.commits and self.commits[0][0] > read_version + 1:
            raise TransactionTooOld("Too much was committed since the transaction began")
        for version, writes in reversed(self.commits):
            if version <= read_version:
                return
            if any(low < end and begin < high for low, high in writes for begin, end in reads):
                raise TransactionConflict("Something that the transaction read has changed")

    def apply(self, mutations: list[Mutation]) -> None:
        """Commit a list of mutations as one new version."""
        self.version += 1
        writes: list[KeyRange] = []
        for kind, key, second in mutations:
            writes.append((key, second if kind == "clear_range" else key + b"\0"))
            match kind:
                case "set":
                    self._set(key, second)
                case "add":
                    self._set(key, added(self.values.get(key), second))
                case "clear_range":
                    self._clear(key, second)
        self.commits.append((self.version, writes))
        if len(self.commits) > MAX_REMEMBERED_COMMITS:
            self.commits.popleft()

    def _set(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def _clear(self, begin: bytes, end: bytes) -> None:
        low, high = bisect_left(self.keys, begin), bisect_left(self.keys, end)
        for key in self.keys[low:high]:
            del self.values[key]
        del self.keys[low:high]


class View:
    """A transaction's reads and writes (a `Backing`) on one state of the simulated store, its writes buffered."""

    def __init__(self, disk: Disk, read_seconds: Callable[[], float] | None = None) -> None:
        self._disk = disk
        self._own = Overlay()
        self._read_seconds = read_seconds
        self._ahead: set[bytes | KeyRange] = set()
        """The keys and ranges whose delay was spent by `read_ahead`."""
        self.waited_seconds = 0.0
        """The simulated time of the transaction's reads, which is added to the transaction's age."""
        self.version = disk.version
        self.reads: list[KeyRange] = []
        self.mutations: list[Mutation] = []

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        """Return the value of a key, the transaction's own writes included; None for a missing key."""
        if key not in self._own.values and key not in self._ahead:
            self._wait()
        return self._get(key, snapshot)

    def _wait(self) -> None:
        if self._read_seconds is not None:
            self.waited_seconds += self._read_seconds()

    def _get(self, key: bytes, snapshot: bool) -> bytes | None:
        if not snapshot:
            self.reads.append((key, key + b"\0"))
        return self._visible(key)

    def _visible(self, key: bytes) -> bytes | None:
        own = self._own.values
        return own[key] if key in own else self._disk.values.get(key)

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        """Return at most `limit` pairs of [begin, end), the transaction's own writes included; limit 0 returns all."""
        if (begin, end) not in self._ahead:
            self._wait()
        return self._range(begin, end, limit, reverse, snapshot)

    def _range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        own = self._own.between(begin, end)
        keys = self._disk.between(begin, end)
        if own:
            keys = sorted({*keys, *own})
        found: list[KeyValue] = []
        for key in reversed(keys) if reverse else keys:
            value = self._visible(key)
            if value is not None:
                found.append((key, value))
                if len(found) == limit:
                    break
        if not snapshot:
            self.reads.append(_range_read(begin, end, found, limit=limit, reverse=reverse))
        return found

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        """Return the values of several keys; all together take the simulated delay of one read."""
        if not self._ahead.issuperset(keys):
            self._wait()
        return [self._get(key, snapshot) for key in keys]

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        """Return the pairs of several ranges; all together take the simulated delay of one read."""
        if not self._ahead.issuperset(ranges):
            self._wait()
        return [self._range(begin, end, limit, False, snapshot) for begin, end in ranges]

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Spend the simulated delay of one read now, so that later reads of the keys and ranges have none."""
        if self._read_seconds is not None:
            self._ahead.update(keys, ranges)
            self._wait()

    def read_next(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Do nothing, since no transaction on the simulated store begins early."""

    def set(self, key: bytes, value: bytes) -> None:
        """Buffer the write of a key and its value until the commit."""
        self.mutations.append(("set", key, value))
        self._own.put(key, value)

    def clear(self, key: bytes) -> None:
        """Buffer the removal of a key until the commit."""
        self.clear_range(key, key + b"\0")

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Buffer the removal of all keys of [begin, end) until the commit."""
        self.mutations.append(("clear_range", begin, end))
        for key in (*self._disk.between(begin, end), *self._own.between(begin, end)):
            self._own.put(key, None)

    def add(self, key: bytes, amount: bytes) -> None:
        """Buffer an addition to a little-endian integer until the commit, without a read that can conflict."""
        self.mutations.append(("add", key, amount))
        self._own.put(key, added(self._visible(key), amount))

    def get_read_version(self) -> int:
        """Return the version of the committed state that the transaction reads."""
        return self.version


class SimulatedDatabase:
    """An in-memory database on a `Disk`, for simulations and tests; a seed decides which faults happen.

    `crash` ends the database as a kill does: calls in flight raise StoreUnavailable, committed or not.
    """

    exclusive = False

    def __init__(
        self,
        disk: Disk | None = None,
        *,
        faults: Faults = NO_FAULTS,
        seed: int = 0,
        run_seconds: float = RUN_SECONDS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Create a closed database over the data of `disk`, with the faults to inject, their seed and the clocks.

        `sleep` spends the time of reads; a `sleep` that returns at once only lets the transactions age. `now` is the
        clock by which transactions age; by default the event loop's.
        """
        self._sleep = sleep
        self._now = now
        self.disk = Disk() if disk is None else disk
        """The committed state, on which a test may open a second database after a crash."""
        self.faults = faults
        self._chance = random.Random(seed)  # noqa: S311  # not a secret: a test repeats it
        self._run_seconds = run_seconds
        self._open = False
        self.path = NetworkPath()
        """The simulated network to the store; while a test cuts it, calls wait until their time limit."""
        self._failure: asyncio.Future[StoreFailed] | None = None
        self.repeated = 0
        """The number of transaction attempts that were retries."""

    async def __aenter__(self) -> Self:
        self._open = True
        self._failure = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False

    def crash(self) -> None:
        """Close the database at once, as a kill of its process would; its disk keeps the committed state."""
        self._open = False

    def fail(self, error: StoreFailed) -> None:
        """Stop the store for good with an error, as a full disk does."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    async def failure(self) -> StoreFailed:
        """Wait until `fail` has stopped the store for good, and return the error."""
        if self._failure is None:
            raise StoreUnavailable("The store is not open")
        return await asyncio.shield(self._failure)

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a transaction function and commit its writes, again after errors that permit it; return its result."""

        async def attempt(earlier: EarlierTries) -> Result:
            self.repeated += earlier.count > 0
            return await self._attempt(body, earlier)

        return await repeated(attempt, seconds=self._run_seconds, chance=self._chance)

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function on one committed state of the store, and return its result."""
        return await self.run(lambda tr: body(tr.snapshot))

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question, exactly as `read` does."""
        return await self.read(body)

    async def _attempt(self, body: Callable[[Transaction], Result], earlier: EarlierTries) -> Result:
        await self._travel(*BOTH)
        now = self._now or asyncio.get_running_loop().time
        view = View(self.disk, self._read_seconds if any(self.faults.read_seconds) else None)
        transaction = Transaction(view, now=lambda: now() + view.waited_seconds, earlier=earlier)
        try:
            result = call(body, transaction)
        finally:
            if view.waited_seconds:
                over = now() + view.waited_seconds
                await self._sleep(view.waited_seconds)
                view.waited_seconds = max(0.0, over - now())
        if view.mutations:
            await self._travel(Way.TO_SERVER)
            transaction.check_age()
            self._commit(view)
        await self._travel(Way.TO_CLIENT)
        return result

    def _commit(self, view: View) -> None:
        faults, drawn = self.faults, self._chance.random()
        self.disk.check(view.reads, view.version)
        if drawn < faults.conflict:
            raise TransactionConflict("The fault that was asked for")
        drawn -= faults.conflict
        if drawn < faults.too_old:
            raise TransactionTooOld("The fault that was asked for")
        drawn -= faults.too_old
        if drawn < faults.unknown_lost:
            raise CommitUnknown("The fault that was asked for")
        drawn -= faults.unknown_lost
        self.disk.apply(view.mutations)
        if drawn < faults.unknown_committed:
            raise CommitUnknown("The fault that was asked for")

    def _read_seconds(self) -> float:
        low, high = self.faults.read_seconds
        return low + (high - low) * self._chance.random()

    async def _travel(self, *ways: Way) -> None:
        """Wait for a random delay and the simulated network, one way or both; raise if the store closed or failed."""
        low, high = self.faults.latency_seconds
        await asyncio.sleep(low + (high - low) * self._chance.random() if high else 0)
        for way in ways:
            await self.path.travel(way)
        if self._failure is not None and self._failure.done():
            raise self._failure.result()
        if not self._open:
            raise StoreUnavailable("The store is closed")


def _range_read(begin: bytes, end: bytes, found: list[KeyValue], *, limit: int, reverse: bool) -> KeyRange:
    """Return the range of keys that a read depends on: only up to the last pair found, if the limit was reached."""
    if not limit or len(found) < limit:
        return begin, end
    return (found[-1][0], end) if reverse else (begin, found[-1][0] + b"\0")
