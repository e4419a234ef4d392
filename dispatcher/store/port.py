"""The port: a database of ordered keys with serialisable transactions, in FoundationDB's words.

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
may run in another thread and more than once, and because its commit may be refused. What else is to be done when it is
committed (a cache to be filled, a message, a count) is an **effect**: the function returns it, and the caller of `run`
applies it. It may read values that do not change while `run` lasts. It must be **idempotent by a natural key**: when
the answer to a commit is lost, it is run again although it may have been committed. So it first looks whether what it
is about to do is done; `tr.earlier` counts the tries before, for a function that gives up by itself.
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
    """An open store. Use as an async context manager; safe for concurrent calls on one event loop.

    Transactions are strictly serialisable: each happens at one instant between its call and its return.
    """

    async def __aenter__(self) -> Self:
        """Opens the store.

        Raises: StoreMisconfigured, StoreUnavailable, StoreLocked; StoreFailed when the file is damaged.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes what was begun and closes the store."""

    async def run(self, body: TransactionFunction[Value]) -> Value:
        """Runs the function in a transaction, commits it, and returns what it returned: then it is durable.

        Conflicts, transactions that got too old and unknown commits are repeated here, with growing pauses.
        An exception of the function goes to the caller, and nothing is written. A cancelled caller does not
        know the outcome.

        Raises: TransactionTimedOut when the time of the database is up (outcome unknown; retryable),
        StoreUnavailable and StoreLocked (retryable), BeyondLimit (never retryable), StoreFailed (end the
        process).
        """

    async def read(self, body: Callable[[Reads], Value]) -> Value:
        """Runs a function that only reads, beside the writers and without waiting for them.

        It sees one state: everything that was acknowledged before the call, and nothing by half.

        Raises: as `run`.
        """

    async def ask(self, body: Callable[[Reads], Value]) -> Value:
        """As `read`, for somebody's question: the program's own reads do not wait for it.

        Raises: as `run`.
        """

    async def failure(self) -> StoreFailed:
        """Returns when the store has stopped for good, and never otherwise: the program ends then."""

    @property
    def exclusive(self) -> bool:
        """Whether no other process can have the store open: whoever else has a lease in it has ended."""
