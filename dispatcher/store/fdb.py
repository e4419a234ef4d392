"""The store on a FoundationDB 7.3 cluster, by FoundationDB's Python binding in a few threads.

FoundationDB decides which errors are repeated and how long to wait (`Transaction.on_error`); this module translates its
codes into the store's errors. The binding's asyncio mode needs names that Python 3.11 no longer has, hence the threads.
The native library ``libfdb_c`` comes from the FoundationDB client package of the cluster's own version.

`make test-fdb` runs the contract suite, the tests of workflows, chaos and the benchmarks on a real cluster.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from coditect.errors import CoditectError
from dispatcher.store import errors
from dispatcher.store.binding import load_binding
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.transaction import KeyRange, KeyValue, Reads, Transaction, call

Result = TypeVar("Result")

API_VERSION = 730
"""The version of FoundationDB's client API; a process can choose only one."""
OPEN_SECONDS = 10.0
DECIDED_SECONDS = 1.0
"""The longest wait of a canceled caller for the end of its transaction, which takes longer when no cluster answers."""
TOO_OLD = 1007
MOST_RANGES = 2
"""The most ranges read ahead that a transaction keeps itself; if there are more, FoundationDB's client answers."""

_SET_UP = (1511, 1513, 1515, 1516, 2006, 2007, 2009, 2022, 2100, 2104, 2105, 2106, 2107, 2108, 2200, 2201, 2202, 2203)
_MEANINGS: tuple[tuple[frozenset[int], type[CoditectError], str], ...] = (
    (frozenset({1020}), errors.TransactionConflict, "Something that the transaction read has changed"),
    (frozenset({TOO_OLD}), errors.TransactionTooOld, "The transaction was open for too long"),
    (frozenset({1021, 1039}), errors.CommitUnknown, "The answer to the commit was lost"),
    (frozenset({1031}), errors.TransactionTimedOut, "The transaction did not come through in time"),
    (frozenset({2101}), errors.TransactionTooLarge, "The transaction is too large; do it in several"),
    (frozenset({2102}), errors.KeyTooLarge, "The key is too large"),
    (frozenset({2103}), errors.ValueTooLarge, "The value is too large"),
    (frozenset({2004}), errors.KeyOutsideRange, "The key is outside of the legal range"),
    (frozenset({2005}), errors.InvertedRange, "The range begins behind its end"),
    (
        frozenset(_SET_UP),
        errors.StoreMisconfigured,
        "FoundationDB cannot be reached with this set-up; see its cluster file, version and options",
    ),
    (frozenset({1501}), errors.StoreFailed, "There is no memory left"),
)
"""The store's error and sentence for each known error code of FoundationDB; any other is StoreUnavailable.

New codes appear with new versions, and no code proves damage.
"""


@dataclass(frozen=True, slots=True)
class FdbSettings:
    """The settings of a FoundationDB store: cluster file, time limit, number of threads, and TLS."""

    cluster_file: str | None = None
    """The path of the cluster file; None for ``FDB_CLUSTER_FILE``, or else FoundationDB's default path."""
    run_seconds: float = RUN_SECONDS
    threads: int = 16
    """The number of threads, which is the most transactions that run concurrently."""
    tls_certificate_file: str | None = None
    """The client's certificate, PEM; TLS needs all three files, and ``:tls`` in the cluster file."""
    tls_key_file: str | None = None
    tls_authority_file: str | None = None
    tls_password: str | None = None
    """The password of the TLS private key."""
    tls_verify_peers: str | None = None
    """FoundationDB's check of the server's certificate, such as ``Check.Valid=1``."""


class FdbDatabase:
    """A database on a FoundationDB cluster; the client's network thread starts with the first database of a process.

    The network thread ends with the process.
    """

    exclusive = False

    def __init__(self, settings: FdbSettings | None = None, *, binding: Any = None) -> None:
        self._settings = settings or FdbSettings()
        self._fdb = binding or load_binding()
        self._pool: ThreadPoolExecutor | None = None
        self._database: Any = None
        self._chance = random.Random()  # noqa: S311  # spreads retries
        self.repeats: Counter[int] = Counter()
        """The number of transactions that were started again, by FoundationDB's error code; 1020 is a conflict."""

    async def __aenter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="store-fdb")
        try:
            self._database = await self._in_thread(self._open)
        except BaseException:
            self._pool.shutdown(wait=False)
            self._pool = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pool, self._pool, self._database = self._pool, None, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a transaction function in a thread and commit, again after errors that permit it; return its result."""

        async def attempt(earlier: EarlierTries) -> Result:
            return await self._attempt(body, earlier)

        return await repeated(attempt, seconds=self._settings.run_seconds, chance=self._chance)

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function in a thread, on a snapshot of the database, and return its result."""
        return await self.run(lambda tr: body(tr.snapshot))

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question, exactly as `read` does."""
        return await self.read(body)

    async def failure(self) -> errors.StoreFailed:
        """Wait for ever, since a FoundationDB cluster that does not answer may answer later."""
        never: asyncio.Future[errors.StoreFailed] = asyncio.get_running_loop().create_future()
        return await never

    async def _attempt(self, body: Callable[[Transaction], Result], earlier: EarlierTries) -> Result:
        if self._database is None:
            raise errors.StoreUnavailable("The store is not open")
        codes: list[int] = []
        transaction = self._database.create_transaction()
        version = transaction.get_read_version()  # it comes while a thread gets ready, which then waits for it less
        transaction.options.set_timeout(max(1, int(self._settings.run_seconds * 1000)))
        try:
            return await self._in_thread(lambda: self._commit(transaction, body, earlier, codes))
        finally:
            del version
            self.repeats.update(codes)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        assert self._pool is not None, "the store is open"
        begun = self._pool.submit(work)
        ending = asyncio.wrap_future(begun)
        try:
            return await asyncio.shield(ending)
        except asyncio.CancelledError:
            if not begun.cancel():  # its commit must not come after what the caller does next
                ending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait([ending], timeout=DECIDED_SECONDS)
            raise

    def _open(self) -> Any:
        settings = self._settings
        try:
            self._fdb.api_version(API_VERSION)
        except Exception as error:  # plain Exception without the library, RuntimeError for another version
            raise errors.StoreMisconfigured(
                "FoundationDB's client library cannot be used; install the client package of the cluster's version",
                api_version=API_VERSION,
                reason=str(error),
            ) from error
        options = self._fdb.options
        try:
            for value, choose in (
                (settings.tls_password, options.set_tls_password),  # before the key that it opens
                (settings.tls_certificate_file, options.set_tls_cert_path),
                (settings.tls_key_file, options.set_tls_key_path),
                (settings.tls_authority_file, options.set_tls_ca_path),
                (settings.tls_verify_peers and settings.tls_verify_peers.encode(), options.set_tls_verify_peers),
            ):
                if value is not None:
                    choose(value)
            database = self._fdb.open(settings.cluster_file)
            transaction = database.create_transaction()
            transaction.options.set_timeout(int(OPEN_SECONDS * 1000))
            transaction.get_read_version().wait()
        except self._fdb.FDBError as error:
            meant = translated(error)
            if isinstance(meant, errors.TransactionTimedOut):
                meant = errors.StoreUnavailable("The cluster does not answer", cluster_file=settings.cluster_file)
            raise meant from error
        return database

    def _commit(
        self, transaction: Any, body: Callable[[Transaction], Result], earlier: EarlierTries, codes: list[int]
    ) -> Result:
        """Run a transaction function and commit, again and again while FoundationDB permits a retry; return its result.

        Each repeated code is added to `codes`. The timeout bounds the whole loop, since it survives the resets.
        """
        while True:
            try:
                try:
                    result = call(body, Transaction(_Bound(transaction, self._fdb), earlier=earlier))
                    transaction.commit().wait()
                    return result
                except errors.TransactionTooOld:  # by our own clock
                    code = TOO_OLD
                except self._fdb.FDBError as error:
                    code = error.code
                transaction.on_error(code).wait()
                codes.append(code)
            except self._fdb.FDBError as error:
                raise translated(error) from error


class _Bound:
    """The reads and writes of one transaction, carried out by a transaction of FoundationDB's Python binding.

    What was read ahead is kept here until it is written. FoundationDB's client keeps it, too, and lays the
    transaction's own writes over it, but every question to the client takes two switches of threads.
    """

    def __init__(self, transaction: Any, binding: Any) -> None:
        self._transaction = transaction
        self._all = binding.StreamingMode.want_all
        self._values: dict[bytes, bytes | None] = {}
        self._ranges: list[_Range] = []
        """The ranges that were read ahead last, when they were few."""

    def get(self, key: bytes, snapshot: bool) -> bytes | None:
        if key not in self._values:
            value: bytes | None = self._reads(snapshot).get(key).value
            return value
        if not snapshot:
            self._transaction.add_read_conflict_key(key)
        return self._values[key]

    def get_range(self, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool) -> list[KeyValue]:
        kept = next((one for one in self._ranges if one.answers(begin, end, limit, reverse)), None)
        if kept is None:
            return _pairs(self._reads(snapshot).get_range(begin, end, limit, reverse, self._all))
        found = kept.pairs[: limit or None]
        if not snapshot:
            is_cut = found and len(found) == limit
            self._transaction.add_read_conflict_range(begin, found[-1][0] + b"\0" if is_cut else end)
        return found

    def get_many(self, keys: Sequence[bytes], snapshot: bool) -> list[bytes | None]:
        reads = self._reads(snapshot)
        values = [reads.get(key) for key in keys]  # each is under way before the first is waited for
        return [value.value for value in values]

    def get_ranges(self, ranges: Sequence[KeyRange], limit: int, snapshot: bool) -> list[list[KeyValue]]:
        reads = self._reads(snapshot)
        found = [reads.get_range(begin, end, limit, False, self._all) for begin, end in ranges]
        return [_pairs(pairs) for pairs in found]

    def read_ahead(self, keys: Iterable[bytes], ranges: Iterable[KeyRange], limit: int) -> None:
        """Read all given keys and ranges at once, by snapshot reads; only the later reads can cause a conflict."""
        reads = self._transaction.snapshot
        values = [(key, reads.get(key)) for key in keys]
        begun = [(begin, end, reads.get_range(begin, end, limit, False, self._all)) for begin, end in ranges]
        # The last is waited for first: when it is there, so are the others, and nothing is waited for once more.
        found = [_Range(begin, end, limit, _pairs(pairs)) for begin, end, pairs in reversed(begun)]
        self._values |= [(key, value.value) for key, value in reversed(values)]
        self._ranges = found if len(found) <= MOST_RANGES else []

    def set(self, key: bytes, value: bytes) -> None:
        self._forget(key)
        self._transaction.set(key, value)

    def clear(self, key: bytes) -> None:
        self._forget(key)
        self._transaction.clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        self._values = {key: value for key, value in self._values.items() if not begin <= key < end}
        self._ranges = []
        self._transaction.clear_range(begin, end)

    def add(self, key: bytes, amount: bytes) -> None:
        self._forget(key)
        self._transaction.add(key, amount)

    def get_read_version(self) -> int:
        version: int = self._transaction.get_read_version().wait()
        return version

    def _reads(self, snapshot: bool) -> Any:
        return self._transaction.snapshot if snapshot else self._transaction

    def _forget(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._ranges = [one for one in self._ranges if not one.begin <= key < one.end]


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of keys that was read ahead, with its first `limit` key-value pairs, or all of them for limit 0."""

    begin: bytes
    end: bytes
    limit: int
    pairs: list[KeyValue]

    def answers(self, begin: bytes, end: bytes, limit: int, reverse: bool) -> bool:
        """Tell whether the pairs read ahead are enough for a read of the given range, limit and direction."""
        is_whole = not self.limit or len(self.pairs) < self.limit
        return (begin, end, reverse) == (self.begin, self.end, False) and (is_whole or 0 < limit <= self.limit)


def _pairs(found: Iterable[Any]) -> list[KeyValue]:
    return [(pair.key, pair.value) for pair in found]


def translated(error: Any) -> CoditectError:
    """Return the store's error for an error of FoundationDB's binding: StoreUnavailable for an unknown code."""
    code: int = error.code
    for codes, kind, sentence in _MEANINGS:
        if code in codes:
            return kind(sentence, fdb_code=code)
    return errors.StoreUnavailable("FoundationDB refused the transaction", fdb_code=code)
