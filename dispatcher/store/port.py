"""The port of the store: a database of ordered keys with serializable transactions, in FoundationDB's terms.

A *transaction function* is a plain function that takes the transaction `tr` first, reads and writes through
it and returns a value::

    def take(tr: Transaction, lock: str, holder: str) -> bool:
        key = LOCKS.pack((lock,))
        if tr.get(key) is not None:
            return False
        tr.set(key, holder.encode())
        return True

    taken = await database.run(lambda tr: take(tr, "repo", "a"))

It must touch nothing but `tr`: no await, no I/O, no log line, no clock, no chance, no state of the program, because it
may run in another thread and more than once, and because its commit may be refused. Any other consequence of the commit
(a cache entry, a message, a count) is an **effect**: the function returns it, and the caller of `run` applies it. The
function may read values that do not change while `run` lasts. It must be **idempotent by a natural key**: when the
answer to a commit is lost, it runs a second time although it may have been committed. So it first checks whether its
work is done; `tr.earlier` counts the earlier tries, for a function that limits them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from dispatcher.store.errors import StoreFailed
from dispatcher.store.transaction import Reads, Transaction

Value = TypeVar("Value")
TransactionFunction = Callable[[Transaction], Value]


class Database(Protocol):
    """An open store with strictly serializable transactions; safe for concurrent calls on one event loop.

    Use as an async context manager. Each transaction happens at one instant between its call and its return.
    """

    async def __aenter__(self) -> Self:
        """Open the store's file or cluster.

        Raises:
            StoreMisconfigured: when the file or cluster is no Coditect store, or a newer one.
            StoreUnavailable: when the store does not answer, or (StoreLocked) another process owns it.
            StoreFailed: when the file is damaged.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the transactions under way and close the store."""

    async def run(self, body: TransactionFunction[Value]) -> Value:
        """Run a function in a transaction, commit its writes durably, and return its result.

        Conflicts, transactions that got too old and unknown commits are repeated, with growing pauses. An exception of
        the function goes to the caller, and nothing is written. A canceled caller does not know the outcome.

        Raises:
            TransactionTimedOut: when the time of the database is up; outcome unknown, retryable.
            StoreUnavailable: when the store does not answer, or (StoreLocked) another process holds it; retryable.
            BeyondLimit: when the function breaks a limit; never retryable.
            StoreFailed: when the store has stopped; end the process.
        """

    async def read(self, body: Callable[[Reads], Value]) -> Value:
        """Run a read-only function on one state of the store, without waiting for writers.

        The function sees everything that was acknowledged before the call, and each transaction whole.

        Raises:
            CoditectError: any error of `run`.
        """

    async def ask(self, body: Callable[[Reads], Value]) -> Value:
        """Run a read-only function for a user's question; on SQLite in other threads than the program's own reads.

        Raises:
            CoditectError: any error of `run`.
        """

    async def failure(self) -> StoreFailed:
        """Wait until the store has stopped for good, and return the error with which the program must end."""

    @property
    def exclusive(self) -> bool:
        """Tell whether only one process can open the store, so that lease owners from earlier processes are dead."""
