"""An agent whose tasks take two locks, one after the other, in the order that their input names."""

from __future__ import annotations

import asyncio

from coditect import Agent, Context, Retry

crosser = Agent("crosser", slots=1)
HOLD_SECONDS = 3.0
"""How long the first lock is held before the second one is asked for: the other task has its first one by then."""


@crosser.capability("lock.cross", retry=Retry(max_attempts=1))
async def cross(order: list[str], ctx: Context) -> list[str]:
    """Return the locks that were held together."""
    first, second = order
    async with ctx.lock(first):
        await asyncio.sleep(HOLD_SECONDS)
        async with ctx.lock(second):
            return order


@crosser.capability("lock.process", process=True)
async def in_a_process(name: str, ctx: Context) -> int:
    """Take a lock in a process of its own, and return its fence."""
    async with ctx.lock(name) as lock:
        return lock.fence
