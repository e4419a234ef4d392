"""An agent whose lifespan is opened in its own process and in those of its handlers, which load it from this file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coditect import Agent, Context, Depends, PlainContext

JOURNAL = "LIFESPAN_JOURNAL"


class Shared:
    """A resource that belongs to one event loop, as a connection does."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.used = 0

    async def use(self) -> int:
        assert asyncio.get_running_loop() is self.loop
        self.used += 1
        return self.used


@asynccontextmanager
async def lifespan(agent: Agent) -> AsyncIterator[Shared]:
    _note("start")
    yield Shared()
    _note("stop")


def _note(what: str) -> None:
    with Path(os.environ[JOURNAL]).open("a") as file:
        file.write(f"{what} {os.getpid()}\n")


agent = Agent("span", lifespan=lifespan)


@agent.capability("span.async", process=True)
async def use(_: None, ctx: Context) -> int:
    found: Shared = ctx.lifespan
    return await found.use()


@agent.capability("span.plain", process=True)
def count(_: None, ctx: PlainContext) -> int:
    found: Shared = ctx.lifespan
    found.used += 1
    return found.used


async def doubled(shared: Shared) -> AsyncIterator[int]:
    yield 2 * await shared.use()
    await shared.use()


@agent.capability("span.given", process=True)
def given(number: int, two: int = Depends(doubled)) -> int:
    return number + two - 1
