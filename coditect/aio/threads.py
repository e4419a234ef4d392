"""Calls between an event loop and threads, in both directions, that carry any exception of a user's code.

asyncio has no place for some of them: a future takes no StopIteration and never ends, a SystemExit or KeyboardInterrupt
of an asyncio task ends the event loop, and a CancelledError looks like a cancellation. So an exception travels as a
value, beside the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast
from weakref import WeakSet

from coditect.aio.cancellation import cancellations
from coditect.model.result import trace_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Carried(Generic[T]):
    """The end of a call: its result, or the exception that it raised."""

    value: T | None = None
    error: BaseException | None = None
    trace: TracebackType | None = None

    @classmethod
    def failed(cls, error: BaseException) -> Self:
        """Return the end of a call that raised an exception, with the exception's present traceback."""
        return cls(error=error, trace=trace_of(error))

    def result(self) -> T:
        """Return the call's result, or raise its exception with the traceback that it had at the end of the call.

        A coroutine that calls this passes a StopIteration on as a RuntimeError, as Python does (PEP 479).
        """
        if self.error is None:
            return cast("T", self.value)
        try:
            raise BaseException.with_traceback(self.error, self.trace)
        finally:
            del self  # or the error would hold on to itself by its traceback


def carry(call: Callable[[], T]) -> Carried[T]:
    """Make a call, and return its end, whatever it raises."""
    try:
        return Carried(call())
    except BaseException as error:  # noqa: BLE001 - it travels as a value
        return Carried.failed(error)


async def carry_await(work: Awaitable[T]) -> Carried[T]:
    """Await work, and return its end, whatever it raises; only a cancellation of the awaiting task passes through."""
    try:
        return Carried(await work)
    except asyncio.CancelledError as error:
        if cancellations():
            raise
        return Carried.failed(error)
    except BaseException as error:  # noqa: BLE001 - it travels as a value
        return Carried.failed(error)


async def in_thread(call: Callable[[], T]) -> T:
    """Make a call in a thread of the event loop's pool, as `asyncio.to_thread` does, and return its result.

    Raises:
        BaseException: whatever the call raises; a StopIteration as the cause of a RuntimeError.
    """
    ends: list[Carried[T]] = []

    def run() -> None:
        ends.append(carry(call))

    await asyncio.get_running_loop().run_in_executor(None, copy_context().run, run)
    return ends.pop().result()  # nothing else keeps the error, whose traceback keeps this frame: no cycle is left


_WAITING: WeakSet[asyncio.Future[Any]] = WeakSet()


async def awaited_by(job: asyncio.Future[Any] | None, work: Awaitable[T]) -> T:
    """Await, on the event loop, the work that a job in a thread waits for; meanwhile `waits_for_loop(job)` is True."""
    if job is None:
        return await work
    _WAITING.add(job)
    try:
        return await work
    finally:
        _WAITING.discard(job)


def waits_for_loop(job: asyncio.Future[Any]) -> bool:
    """Tell whether a job in a thread waits for something that its event loop does."""
    return job in _WAITING
