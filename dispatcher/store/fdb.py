"""The store on a FoundationDB 7.3 cluster, by FoundationDB's Python binding in a few threads.

FoundationDB decides which errors are repeated and how long to wait (`Transaction.on_error`); this module translates its
codes into the store's errors. The binding's asyncio mode needs names that Python 3.11 no longer has, hence the threads.
The native library ``libfdb_c`` comes from the FoundationDB client package of the cluster's own version.

`make test-fdb` runs the contract suite, the tests of workflows, chaos and the benchmarks on a real cluster.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from coditect.errors import CoditectError, missing_extra
from dispatcher.store import errors
from dispatcher.store.fdb_backing import FdbBacking
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.transaction import Reads, Transaction, call

Result = TypeVar("Result")

API_VERSION = 730
"""The version of FoundationDB's client API; a process can choose only one."""
OPEN_SECONDS = 10.0
DECIDED_SECONDS = 1.0
"""The longest wait of a canceled caller for the end of its transaction, which takes longer when no cluster answers."""
EARLY_BEGIN_SECONDS = 0.1
"""The longest time that a transaction begun early waits for its function, as long as the client's own read versions."""
FRESH_SECONDS = 1.0
"""The longest time without a question for a new read version, whose answers FoundationDB slows when it has too much."""
TOO_OLD = 1007
CONFLICT = 1020
UNDONE = (1007, 1009, CONFLICT, 1037, 2101)
"""The codes of transactions that began early and were surely not committed; a new version may be all that they need."""

_SET_UP = (1511, 1513, 1515, 1516, 2006, 2007, 2009, 2022, 2100, 2104, 2105, 2106, 2107, 2108, 2200, 2201, 2202, 2203)
_MEANINGS: tuple[tuple[frozenset[int], type[CoditectError], str], ...] = (
    (frozenset({CONFLICT}), errors.TransactionConflict, "Something that the transaction read has changed"),
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
    """The settings of a FoundationDB store; those of TLS are FoundationDB's own variables."""

    cluster_file: str | None = None
    """The path of the cluster file; None for ``FDB_CLUSTER_FILE``, or else FoundationDB's default path."""
    run_seconds: float = RUN_SECONDS
    threads: int = 16
    """The number of threads, which is the most transactions that run concurrently."""


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
        self._running = 0
        self._early: FdbBacking | None = None
        """The next transaction, if it was begun early; the first `run` takes it."""
        self._early_until = self._asked_at = self._ended_at = -1.0
        """The monotonic times until which that may be taken, of the last question for a new read version, and of the
        last end of a transaction.
        """
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
        pool, self._pool, self._database, self._early = self._pool, None, None, None
        if pool is not None:
            await asyncio.to_thread(pool.shutdown)

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a transaction function in a thread and commit, again after errors that permit it; return its result.

        If the commit before announced it (`Transaction.read_next`), the transaction begins at that commit's version,
        and its own commit checks every read.
        """
        return await self._repeated(lambda earlier: self._attempt(body, earlier))

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function in a thread, on a snapshot of the database, and return its result."""
        return await self._repeated(
            lambda earlier: self._carry_out(self._begin(), lambda tr: body(tr.snapshot), earlier)
        )

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question, exactly as `read` does."""
        return await self.read(body)

    async def failure(self) -> errors.StoreFailed:
        """Wait for ever, since a FoundationDB cluster that does not answer may answer later."""
        never: asyncio.Future[errors.StoreFailed] = asyncio.get_running_loop().create_future()
        return await never

    async def _repeated(self, attempt: Callable[[EarlierTries], Awaitable[Result]]) -> Result:
        return await repeated(attempt, seconds=self._settings.run_seconds, chance=self._chance)

    async def _attempt(self, body: Callable[[Transaction], Result], earlier: EarlierTries) -> Result:
        return await self._carry_out(self._take_early() or self._begin(), body, earlier)

    async def _carry_out(
        self, backing: FdbBacking, body: Callable[[Transaction], Result], earlier: EarlierTries
    ) -> Result:
        codes: list[int] = []
        follows_soon = time.monotonic() - self._ended_at < EARLY_BEGIN_SECONDS
        self._running += 1
        try:
            result, last = await self._in_thread(lambda: self._commit(backing, body, earlier, codes))
        finally:
            self._running -= 1
            self._ended_at = time.monotonic()
            self.repeats.update(codes)
        if follows_soon and last.announced is not None:
            asyncio.get_running_loop().call_soon(self._begin_early, last)  # behind what the commit permits
        return result

    def _begin(self, *, spent_seconds: float = 0.0) -> FdbBacking:
        """Begin a transaction, whose version comes while a thread gets ready, which then waits for it less."""
        backing, self._asked_at = FdbBacking(self._transaction(spent_seconds), self._fdb), time.monotonic()
        backing.ask_version()
        return backing

    def _transaction(self, spent_seconds: float = 0.0) -> Any:
        database = self._database
        if database is None:
            raise errors.StoreUnavailable("The store is not open")
        transaction = database.create_transaction()
        transaction.options.set_timeout(max(1, int((self._settings.run_seconds - spent_seconds) * 1000)))
        return transaction

    def _begin_early(self, last: FdbBacking) -> None:
        """Begin the next transaction at the version of the last commit, with the reads that it announced under way.

        Only if nothing else is under way, whose commit that one would not see.
        """
        now, version = time.monotonic(), last.committed_version
        if self._database is None or self._running or version < 0 or now - self._asked_at > FRESH_SECONDS:
            return
        self._early, self._early_until = FdbBacking(self._transaction(), self._fdb), now + EARLY_BEGIN_SECONDS
        self._early.begin_early(version, last)

    def _take_early(self) -> FdbBacking | None:
        early, self._early = self._early, None
        return early if time.monotonic() < self._early_until else None

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
        try:
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
        self, backing: FdbBacking, body: Callable[[Transaction], Result], earlier: EarlierTries, codes: list[int]
    ) -> tuple[Result, FdbBacking]:
        """Run a transaction function and commit, again and again while FoundationDB permits a retry.

        Return the function's result, and the transaction that was committed. Each repeated code is added to `codes`.
        The timeout bounds the whole loop, since it survives the resets.
        """
        began_at = time.monotonic()
        while True:
            is_early, code = backing.is_early, 0
            try:
                try:
                    result = call(body, Transaction(backing, earlier=replace(earlier) if is_early else earlier))
                    backing.commit()
                    return result, backing
                except errors.TransactionTooOld:  # by our own clock
                    code = TOO_OLD
                except self._fdb.FDBError as error:
                    code = error.code
                except Exception:
                    if not is_early:
                        raise
                    # It may have been told what is no longer so, which no commit has checked.
                if is_early and code in (0, *UNDONE):
                    backing = self._begin(spent_seconds=time.monotonic() - began_at)
                else:
                    earlier.count += is_early
                    backing = backing.restart(code)
                if code:
                    codes.append(code)
            except self._fdb.FDBError as error:
                raise translated(error) from error


def translated(error: Any) -> CoditectError:
    """Return the store's error for an error of FoundationDB's binding: StoreUnavailable for an unknown code."""
    code: int = error.code
    for codes, kind, sentence in _MEANINGS:
        if code in codes:
            return kind(sentence, fdb_code=code)
    return errors.StoreUnavailable("FoundationDB refused the transaction", fdb_code=code)


def load_binding() -> Any:
    """Import FoundationDB's Python binding, and return the module.

    Raises:
        SetupError: when the extra `fdb` is not installed.
    """
    try:
        # nobody on another store installs it; its tuple layer brings `six`, which the binding itself needs only later
        import fdb  # noqa: PLC0415
        import fdb.tuple  # noqa: PLC0415
    except ImportError as error:
        raise missing_extra("fdb") from error
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "fdb.six"]
    return fdb
