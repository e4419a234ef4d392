"""The agents of the benchmarks: one that does nothing, to see what the rest costs, and two that wait.

The hauler does what the waiter does, and hauls, which nobody else does: it can be kept busy on its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from coditect import Agent

ECHO = "bench.echo"
WAIT = "bench.wait"
HAUL = "bench.haul"


@dataclass(frozen=True, slots=True)
class Echo:
    """What comes back as it was."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Wait:
    """How long to wait."""

    milliseconds: int


@dataclass(frozen=True, slots=True)
class Waited:
    """When the handler began, by the machine's monotonic clock: comparable between its processes."""

    started_ns: int


echoer = Agent("echoer", version="1.0.0")
waiter = Agent("waiter", version="1.0.0")
hauler = Agent("hauler", version="1.0.0")


@echoer.capability(ECHO)
async def echo(task: Echo) -> Echo:
    """Give the input back."""
    return task


@hauler.capability(HAUL)
@hauler.capability(WAIT)
@waiter.capability(WAIT)
async def wait(task: Wait) -> Waited:
    """Wait, and tell when that began."""
    started_ns = time.monotonic_ns()
    await asyncio.sleep(task.milliseconds / 1000)
    return Waited(started_ns)
