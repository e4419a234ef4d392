"""The SQLite implementation of `Database`: one thread writes, two read for the program, and two for users."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from dispatcher.store.errors import StoreFailed, StoreLocked, StoreMisconfigured, StoreUnavailable
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.overlay import Overlay
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.sqlite.file import check_whole, connect, failure, prepare, roll_back, tune
from dispatcher.store.sqlite.lock import FileLock
from dispatcher.store.sqlite.statements import Statements
from dispatcher.store.sqlite.writer import Writer
from dispatcher.store.transaction import Reads, Transaction, call

log = logging.getLogger(__name__)

Result = TypeVar("Result")

READERS = 2
WAIT_SECONDS = 5.0
TRY_SECONDS = 0.1
"""The pause between two tries for the file's lock, while another process owns the store."""


class SqliteDatabase:
    """A database in one SQLite file on a local disk, never `:memory:` or a network file system.

    One thread writes, two read, and two more answer questions. One process owns the file, by a lock that the kernel
    frees when the process ends: opening waits `wait_seconds` for another owner to end. `on_wait` is called once when
    there is another owner.
    """

    exclusive = True

    def __init__(
        self,
        path: Path,
        *,
        run_seconds: float = RUN_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._run_seconds = run_seconds
        self._wait_seconds = wait_seconds
        self._on_wait = on_wait
        self._chance = random.Random()  # noqa: S311  # spreads retries
        self._opened: _Opened | None = None

    async def __aenter__(self) -> Self:
        lock = await self._owned()
        try:
            connection, whole = await asyncio.to_thread(self._open)
        except BaseException:
            lock.close()
            raise
        failed: asyncio.Future[StoreFailed] = asyncio.get_running_loop().create_future()

        def fail(error: StoreFailed) -> None:
            if not failed.done():
                failed.set_result(error)

        writer = Writer(connection, self._path, on_failure=fail)
        readers = _Readers(self._path, "store-reader")
        questions = _Readers(self._path, "store-question")
        self._opened = _Opened(connection, lock, writer, (readers, questions), failed)
        if not whole:
            log.info("The store was not closed in order; it is checked beside the work")
            questions.check(fail)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._now_open, None
        await opened.writer.stop()
        await asyncio.to_thread(opened.close)

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a transaction function in the writer's thread, one at a time, and commit; return its result."""
        writer = self._now_open.writer

        async def attempt(earlier: EarlierTries) -> Result:
            result: Result = await writer.submit(body, earlier)
            return result

        return await repeated(attempt, seconds=self._run_seconds, chance=self._chance)

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function on one committed state of the file, at most two at a time.

        A long function keeps the write-ahead log from being shortened.
        """
        return await self._read(self._now_open.readers, body)

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question, at most two at a time, beside the program's reads."""
        return await self._read(self._now_open.questions, body)

    async def _read(self, readers: _Readers, body: Callable[[Reads], Result]) -> Result:
        opened = self._now_open
        loop = asyncio.get_running_loop()

        async def attempt(_: EarlierTries) -> Result:
            if opened.failed.done():
                raise opened.failed.result()
            return await loop.run_in_executor(readers.pool, readers.read, body)

        try:
            return await repeated(attempt, seconds=self._run_seconds, chance=self._chance)
        except StoreFailed as error:
            if not opened.failed.done():
                opened.failed.set_result(error)
            raise

    async def failure(self) -> StoreFailed:
        """Wait until a failure, such as of the disk, has stopped the store for good, and return the error."""
        return await asyncio.shield(self._now_open.failed)

    @property
    def groups(self) -> int:
        """The number of commits to the disk so far; one commit holds a group of transactions."""
        return self._now_open.writer.groups

    @property
    def _now_open(self) -> _Opened:
        if self._opened is None:
            raise StoreUnavailable("The store is not open")
        return self._opened

    async def _owned(self) -> FileLock:
        """Wait for the lock that makes this process the owner of the store's file, take the lock and return it.

        Raises:
            StoreLocked: when another process keeps the lock for `wait_seconds`.
            StoreMisconfigured: when the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._path.with_name(self._path.name + ".lock"))
        except OSError as error:
            raise StoreMisconfigured(
                "The store's folder cannot be written", path=str(self._path), reason=str(error)
            ) from error
        try:
            for tries in count():
                try:
                    lock.acquire()
                    break
                except StoreLocked:
                    if tries * TRY_SECONDS >= self._wait_seconds:
                        raise
                if not tries:
                    self._on_wait()
                await asyncio.sleep(TRY_SECONDS)
        except BaseException:
            lock.close()
            raise
        return lock

    def _open(self) -> tuple[sqlite3.Connection, bool]:
        """Open the file; return the connection, and whether no write-ahead log was left, as after a clean close."""
        log_file = self._path.with_name(self._path.name + "-wal")
        whole = not (log_file.exists() and log_file.stat().st_size)
        try:
            connection = connect(self._path)
        except sqlite3.Error as error:
            raise failure(error, self._path) from error
        try:
            prepare(connection, self._path)
        except BaseException:
            connection.close()
            raise
        return connection, whole


class _Opened:
    """The resources of an open SQLite database: connection, file lock, writing thread and reading threads."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: FileLock,
        writer: Writer,
        readers: tuple[_Readers, _Readers],
        failed: asyncio.Future[StoreFailed],
    ) -> None:
        self.connection = connection
        self.lock = lock
        self.writer = writer
        self.readers, self.questions = readers
        self.failed = failed

    def close(self) -> None:
        """Close all connections and free the file's lock; SQLite then copies the write-ahead log into the file."""
        self.readers.close()
        self.questions.close()
        self.connection.close()
        self.lock.close()


class _Readers:
    """A pool of threads that run read-only functions, each on its own SQLite connection."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self.pool = ThreadPoolExecutor(READERS, thread_name_prefix=name)
        self._checking: sqlite3.Connection | None = None
        self._closing = False

    def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function on one committed state of the file; call it in a thread of the pool."""
        try:
            connection = self._connection()
            connection.execute("BEGIN")
            (version,) = connection.execute("SELECT version FROM state").fetchone()
        except sqlite3.Error as error:
            raise failure(error, self._path) from error
        statements = Statements(connection, self._path, version, Overlay())
        try:
            result = call(lambda tr: body(tr.snapshot), Transaction(statements))
        finally:
            roll_back(connection)
        if statements.broken is not None:
            raise statements.broken
        return result

    def check(self, on_failure: Callable[[StoreFailed], None]) -> None:
        """Start a background check of every page of the store's file, which reports damage to `on_failure`."""
        loop = asyncio.get_running_loop()

        def checked() -> None:
            self._checking = self._connection()
            try:
                check_whole(self._checking, self._path)
            except StoreFailed as error:
                loop.call_soon_threadsafe(on_failure, error)
            except sqlite3.Error as error:
                if not self._closing:
                    log.warning("The store could not be checked", extra={"reason": str(error)})
            finally:
                self._checking = None

        self.pool.submit(checked)

    def close(self) -> None:
        """Interrupt a running check of the file, wait for running reads, and close the connections."""
        self._closing = True
        if (checking := self._checking) is not None:
            checking.interrupt()
        self.pool.shutdown()
        for connection in self._connections:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = connect(self._path)
            self._connections.append(found)
            self._local.connection = found
            tune(found)
        return found
