"""Calls from threads into an event loop, and a record of the jobs in threads that wait for such a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")

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
