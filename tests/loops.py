"""Kills loops that a supervisor keeps, from outside and wherever they stand: what they await fails."""

from __future__ import annotations

import asyncio

from coditect.aio.supervisor import Health


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
