"""The writing thread of a SQLite store, which runs transaction functions one by one and commits them in groups.

All waiting functions run in one SQL transaction, each over the writes of the functions before it, and one sync makes
them durable: while the sync runs the next group gathers. Callers get their results after the sync, all of a group
together. Serial functions cannot conflict, which is cheaper than a check for conflicts.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from coditect.errors import CoditectError
from dispatcher.store.errors import StoreFailed, StoreLocked, StoreUnavailable
from dispatcher.store.overlay import Overlay
from dispatcher.store.retry import EarlierTries
from dispatcher.store.sqlite.file import failure, roll_back
from dispatcher.store.sqlite.statements import Statements, write
from dispatcher.store.transaction import Transaction, call

log = logging.getLogger(__name__)

MOST_OF_A_GROUP = 512
GROUP_SECONDS = 0.05
"""The running time after which a group of transactions commits instead of taking another function."""
MOST_BYTES_OF_A_GROUP = 16_000_000
"""The bytes of buffered writes after which a group commits instead of taking another function."""


@dataclass(slots=True, eq=False)
class WriteRequest:
    """A transaction function in the writing thread's queue, with the future of its result."""

    body: Callable[[Transaction], Any]
    answer: asyncio.Future[Any]
    earlier: EarlierTries
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        """Resolve the caller's future with the function's result or error, unless the future is done."""
        if self.answer.done():
            return
        if self.error is None:
            self.answer.set_result(self.result)
        else:
            self.answer.set_exception(self.error)


class Writer:
    """The writing thread of a SQLite store with its queue; call `submit` and `stop` in the event loop's thread."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, *, on_failure: Callable[[StoreFailed], None]
    ) -> None:
        """Start the writing thread; it calls `on_failure` on the event loop, once, when the store stops for good."""
        self._connection = connection
        self._path = path
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[WriteRequest | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._stopping = False
        self._failed: StoreFailed | None = None
        self.groups = 0
        """The number of commits to the disk so far; one commit holds a group of transactions."""
        self._thread.start()

    def submit(self, body: Callable[[Transaction], Any], earlier: EarlierTries) -> asyncio.Future[Any]:
        """Queue a transaction function, and return its result's future; a function canceled in the queue does not run.

        Raises:
            StoreFailed: when the store has stopped for good.
            StoreUnavailable: when the store is closed.
        """
        if self._failed is not None:
            raise self._failed
        if self._stopping:
            raise StoreUnavailable("The store is closed")
        request = WriteRequest(body, self._loop.create_future(), earlier)
        self._waiting.put(request)
        return request.answer

    async def stop(self) -> None:
        """Run and commit the queued transaction functions, then end the writing thread."""
        self._stopping = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            requests = [first]
            while len(requests) < MOST_OF_A_GROUP and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)
                    break
                requests.append(following)
            self._commit_all(requests)

    def _commit_all(self, requests: list[WriteRequest]) -> None:
        while requests:
            done = requests
            try:
                if self._failed is not None:
                    raise self._failed
                done = self._commit_group(requests)
            except CoditectError as error:
                self._give_up(requests, error)
            except Exception as error:  # noqa: BLE001  # the thread's boundary: nobody may wait for ever
                self._give_up(requests, _meaning(error, self._path))
            requests = requests[len(done) :]
            self._loop.call_soon_threadsafe(_settle, done)

    def _give_up(self, requests: Sequence[WriteRequest], error: CoditectError) -> None:
        """Fail all requests of a group with an error, which stops the store for good unless it is StoreLocked."""
        if not isinstance(error, StoreLocked) and self._failed is None:
            self._failed = error if isinstance(error, StoreFailed) else StoreFailed(error.sentence, **error.facts)
            log.error("The store has stopped", extra={"reason": str(error)})
            self._loop.call_soon_threadsafe(self._on_failure, self._failed)
        for request in requests:
            request.error = self._failed or error

    def _commit_group(self, requests: list[WriteRequest]) -> list[WriteRequest]:
        """Run the functions of the first requests, as many as a commit may hold, commit, and return those requests."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            (before,) = self._connection.execute("SELECT version FROM state").fetchone()
            overlay = Overlay()
            count, version = self._run_all(requests, before, overlay)
            if version != before:
                write(self._connection, overlay)
                self._connection.execute("UPDATE state SET version = ?", (version,))
                self._connection.execute("COMMIT")
                self.groups += 1
        finally:
            roll_back(self._connection)
        return requests[:count]

    def _run_all(self, requests: list[WriteRequest], version: int, overlay: Overlay) -> tuple[int, int]:
        """Run the functions of one group commit up to its limits; return how many ran, and the store's version."""
        enough = time.monotonic() + GROUP_SECONDS
        for count, request in enumerate(requests, start=1):
            version += self._run(request, version, overlay)
            if time.monotonic() > enough or overlay.size_bytes > MOST_BYTES_OF_A_GROUP:
                return count, version
        return len(requests), version

    def _run(self, request: WriteRequest, version: int, overlay: Overlay) -> bool:
        """Run one request's transaction function; tell whether it wrote to the overlay and raised no error."""
        if request.answer.cancelled():
            return False
        statements = Statements(self._connection, self._path, version, overlay)
        try:
            request.result = call(request.body, Transaction(statements, earlier=request.earlier))
        except BaseException as error:  # noqa: BLE001  # the boundary of transactions: it is the caller's
            request.error = error
        if statements.broken is not None:
            raise statements.broken
        if request.error is not None:
            overlay.undo()
        wrote = overlay.changed
        overlay.keep()
        return wrote


def _settle(requests: Sequence[WriteRequest]) -> None:
    for request in requests:
        request.settle()


def _meaning(error: Exception, path: Path) -> CoditectError:
    if isinstance(error, sqlite3.Error):
        return failure(error, path)
    if isinstance(error, OSError):
        return StoreFailed("The disk failed: check it, then start again", path=str(path), reason=str(error))
    return StoreFailed("The store's writer failed", path=str(path), reason=repr(error))
