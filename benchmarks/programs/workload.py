"""The agents of the benchmarks: those that do nothing, to show the cost of the rest, and two that wait.

The hauler offers the waiter's capability and a second one, `bench.haul`, that no other agent offers, so that the hauler
alone can be kept busy.
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
    """The input of an echo, which is also its result."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The input of a waiting task: its duration."""

    milliseconds: int


@dataclass(frozen=True, slots=True)
class Waited:
    """The result of a waiting task: when its handler began, on the machine's monotonic clock.

    All processes of a machine share the clock, so the times are comparable.
    """

    started_ns: int


def echo_capability(number: int) -> str:
    """Return the name of one of many equal capabilities; the first one is plain `bench.echo`."""
    return f"{ECHO}.n{number}" if number else ECHO


def echo_agent(capabilities: int) -> Agent:
    """Return an agent that offers `capabilities` echo capabilities."""
    agent = Agent("echoer", version="1.0.0")
    for number in range(capabilities):
        agent.capability(echo_capability(number))(echo)
    return agent


async def echo(task: Echo) -> Echo:
    """Return the input unchanged: the no-op task of Coditect's side."""
    return task


echoer = echo_agent(int(os.environ.get(CAPABILITIES, "1")))
counter = Agent("counter", version="1.0.0")
waiter = Agent("waiter", version="1.0.0")
hauler = Agent("hauler", version="1.0.0")


@counter.capability(COUNT)
async def count(_task: Echo) -> None:
    """Count a task that wants no result in the process's tally."""
    own_tally().add()


@hauler.capability(HAUL)
@hauler.capability(WAIT)
@waiter.capability(WAIT)
async def wait(task: Wait) -> Waited:
    """Wait for the input's duration, and return when the wait began."""
    started_ns = time.monotonic_ns()
    await asyncio.sleep(task.milliseconds / 1000)
    return Waited(started_ns)
