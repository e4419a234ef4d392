"""The agents of the benchmarks: those that do nothing, to see what the rest costs, and two that wait.

The hauler does what the waiter does, and hauls, which nobody else does: it can be kept busy on its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

from benchmarks.programs.tally import own_tally
from coditect import Agent

ECHO = "bench.echo"
COUNT = "bench.count"
WAIT = "bench.wait"
HAUL = "bench.haul"
CAPABILITIES = "BENCH_CAPABILITIES"


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


def echo_capability(number: int) -> str:
    """The name of one of many capabilities that do the same; the first one is plain `bench.echo`."""
    return f"{ECHO}.n{number}" if number else ECHO


def echo_agent(capabilities: int) -> Agent:
    """An agent that offers so many."""
    agent = Agent("echoer", version="1.0.0")
    for number in range(capabilities):
        agent.capability(echo_capability(number))(echo)
    return agent


async def echo(task: Echo) -> Echo:
    """Give the input back."""
    return task


echoer = echo_agent(int(os.environ.get(CAPABILITIES, "1")))
counter = Agent("counter", version="1.0.0")
waiter = Agent("waiter", version="1.0.0")
hauler = Agent("hauler", version="1.0.0")


@counter.capability(COUNT)
async def count(_task: Echo) -> None:
    """Count the task: nobody waits for its result."""
    own_tally().add()


@hauler.capability(HAUL)
@hauler.capability(WAIT)
@waiter.capability(WAIT)
async def wait(task: Wait) -> Waited:
    """Wait, and tell when that began."""
    started_ns = time.monotonic_ns()
    await asyncio.sleep(task.milliseconds / 1000)
    return Waited(started_ns)
