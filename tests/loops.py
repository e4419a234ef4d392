"""Kills loops that a supervisor keeps, from outside and wherever they stand: what they await fails."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from coditect.aio.supervisor import Health, RestartLimits, Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer

WATCH = "watch publishes"


class Struck(Exception):
    """The failpoint that was asked for."""


def loops(health: Health, *, critical: bool) -> set[str]:
    """The names of the loops that are kept."""
    return {one.name for one in health._kept if one.critical is critical}


def strike(health: Health, name: str) -> bool:
    """Have what the loop awaits fail; False when it runs at this moment, awaits a task, or waits for its restart."""
    (kept,) = [one for one in health._kept if one.name == name]
    awaited = getattr(kept.task, "_fut_waiter", None)
    if kept.paused or awaited is None or awaited.done() or isinstance(awaited, asyncio.Task):
        return False
    awaited.set_exception(Struck("struck", name))
    return True


async def strike_once(health: Health, name: str) -> None:
    """Kill the loop as soon as it awaits something."""
    while not strike(health, name):
        await asyncio.sleep(0.005)


async def strike_for_ever(health: Health, name: str) -> None:
    """Kill each life of the loop, until canceled."""
    while True:
        await strike_once(health, name)
        await asyncio.sleep(0.01)


class LoopingBroker(MemoryBroker):
    """A broker's twin with a loop that it needs, as the connection to RabbitMQ has some."""

    def __init__(self, server: MemoryServer, name: str, limits: RestartLimits | None = None) -> None:
        super().__init__(server, name=name)
        self._loops = Supervisor(self.health, limits=limits)
        self.dying = asyncio.Event()
        """Set, the loop dies for ever."""

    async def __aenter__(self) -> Self:
        self._loops.keep(self._watch, name=WATCH, critical=True)
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._loops.close()
        await super().__aexit__(*error)

    async def _watch(self) -> None:
        await self.dying.wait()
        raise RuntimeError("the fault that was asked for")
