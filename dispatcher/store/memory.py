"""The in-memory store, for tests: SQLite without a file, and without a thread, so that virtual time holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from dispatcher.store.errors import StoreFailed, StoreUnavailable
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.overlay import Overlay
from dispatcher.store.retry import EarlierTries, repeated
from dispatcher.store.sqlite.file import connect_memory
from dispatcher.store.sqlite.statements import Statements, write
from dispatcher.store.transaction import Reads, Transaction, call

Result = TypeVar("Result")

_NO_FILE = Path(":memory:")


class MemoryDatabase:
    """A database that ends with its block; transactions run one by one in the event loop's thread, on its clock."""

    exclusive = False

    def __init__(self, *, run_seconds: float = RUN_SECONDS) -> None:
        self._run_seconds = run_seconds
        self._chance = random.Random()  # noqa: S311  # spreads retries
        self._is_open = False
        self._version = 0

    async def __aenter__(self) -> Self:
        self._connection = connect_memory()
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._connection.close()

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a transaction function and commit its writes; return its result."""

        async def attempt(earlier: EarlierTries) -> Result:
            await asyncio.sleep(0)  # as long as a caller has work, others have their turns
            if not self._is_open:
                raise StoreUnavailable("The store is closed")
            overlay = Overlay()
            statements = Statements(self._connection, _NO_FILE, self._version, overlay)
            now = asyncio.get_running_loop().time
            result = call(body, Transaction(statements, now=now, earlier=earlier))
            if overlay.changed:
                write(self._connection, overlay)
                self._version += 1
            return result

        return await repeated(attempt, seconds=self._run_seconds, chance=self._chance)

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function, and return its result."""
        return await self.run(lambda tr: body(tr.snapshot))

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question, exactly as `read` does."""
        return await self.read(body)

    async def failure(self) -> StoreFailed:
        """Wait for ever, since memory does not fail."""
        never: asyncio.Future[StoreFailed] = asyncio.get_running_loop().create_future()
        return await never
