"""The agents of `make observe`: one capability for each fault, and work for the load."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from coditect import Agent, Breaker, Context, Retry

FOLDER = Path(os.environ["OBSERVED_FOLDER"])
NAME = os.environ["OBSERVED_NAME"]
agent = Agent(NAME, slots=16)
ONCE = Retry(max_attempts=1)

if NAME == "lone":

    @agent.capability("lone.work")
    async def lone(number: int) -> int:
        return number

else:

    @agent.capability("load.work")
    async def work(milliseconds: int, ctx: Context) -> int:
        async with ctx.lock(f"load:{milliseconds}"):
            await asyncio.sleep(milliseconds / 1000)
        return milliseconds

    @agent.capability("fail.now", retry=ONCE)
    async def fail(number: int) -> int:
        raise ValueError(f"{number} is wrong")

    @agent.capability("stub.call", retry=ONCE, breaker=Breaker("stub", failures=1, on=(OSError,), reset=1.0))
    async def call(number: int) -> int:
        if (FOLDER / "down").exists():
            raise OSError("the dependency is down")
        return number

    @agent.capability("lock.take", timeout="2m")
    async def take(name: str, ctx: Context) -> int:
        async with ctx.lock(name) as lock:
            return lock.fence
