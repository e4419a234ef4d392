"""Locks for code without an event loop: `with client.lock("repo:x") as lock`, in scripts and plain handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from coditect.collaboration.locks import Lock
from coditect.errors import LockLost

Run = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine on the event loop of another thread, and waits for its end."""


class BlockingLock:
    """A lock held inside of `with`; the thread of the event loop renews it until the block ends.

    A thread cannot be canceled: when the lock is lost inside of the block, `lost` says why from then on, and `LockLost`
    is raised at the block's end. A long block looks at `lost` before each of its steps.
    """

    def __init__(self, lock: Lock, run: Run, *, closing: Run) -> None:
        """Wrap an asynchronous lock; `run` runs the coroutine that acquires it, `closing` the one that releases it."""
        self._lock, self._run, self._closing = lock, run, closing
        self._over = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of the locked resources."""
        return self._lock.resources

    @property
    def fence(self) -> int:
        """The fencing token of the lock, higher than that of every earlier holder."""
        return self._lock.fence

    @property
    def lost(self) -> str:
        """The reason why the lock was lost inside of the block; empty as long as it is held."""
        return self._lock.lost

    def __enter__(self) -> Self:
        self._lock.flow = f"thread {threading.get_ident():x}"  # the tasks that hold its locks wait for one thread
        self._run(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._closing(self._end())
        except LockLost:
            if error is None:
                raise

    async def _begin(self) -> None:
        """Acquire the lock in an asyncio task of its own, which holds it until the block ends."""
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(held), name=f"holder of {self.resources[0]}")
        try:
            await asyncio.wait({self._holder, held}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._holder.cancel()
            raise
        if not held.done():
            await self._holder

    async def _hold(self, held: asyncio.Future[None]) -> None:
        async with self._lock:
            held.set_result(None)
            await self._over.wait()

    async def _end(self) -> None:
        assert self._holder is not None
        self._over.set()
        await self._holder
