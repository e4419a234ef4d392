"""Agents whose lifespans are opened in their own processes and in those of their handlers, which load this file."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coditect import Agent, Context, Depends, PlainContext, Retry

JOURNAL = "LIFESPAN_JOURNAL"
FOLDER = "REPLACED_FOLDER"
ONCE = Retry(max_attempts=1)
MANY_BYTES = 200_000_000


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


@asynccontextmanager
async def noting_its_end(agent: Agent) -> AsyncIterator[None]:
    yield
    (Path(os.environ[FOLDER]) / f"closed-{os.getpid()}").touch()


replaced = Agent("replaced", slots=3, lifespan=noting_its_end)
kept: list[bytes] = []


@replaced.capability("replaced.twice", process=True, max_tasks_per_process=2, retry=ONCE)
def twice(how: str) -> int:
    if how == "fail":
        raise ValueError(str(os.getpid()))
    while how == "wait" and not (Path(os.environ[FOLDER]) / "go").exists():
        time.sleep(0.01)
    if how == "die":
        os._exit(1)
    return os.getpid()


@replaced.capability("replaced.large", process=True, max_memory="150MB", retry=ONCE)
def large(how: str) -> int:
    if how == "grow":
        kept.append(b"x" * MANY_BYTES)
    return os.getpid()
