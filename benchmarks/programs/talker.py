"""An agent that takes part in a thread until it is closed, and one capability that asks another agent many times."""

from __future__ import annotations

import time

from benchmarks.programs.workload import ECHO, Echo
from coditect import Agent, Context

HEAR = "bench.hear"
ASK = "bench.ask"
WARM_UP = 100

agent = Agent("talker", version="1.0.0", slots=4)


@agent.capability(HEAR)
async def hear(thread: str, ctx: Context) -> list[float]:
    """Returns when each message of the thread came, in seconds of the machine's monotonic clock."""
    return [time.monotonic() async for _ in ctx.thread(thread).listen()]


@agent.capability(ASK)
async def ask(count: int, ctx: Context) -> list[float]:
    """Returns the milliseconds of each of `count` requests of another agent, one after the other."""
    taken = []
    for number in range(WARM_UP + count):
        began = time.perf_counter()
        await ctx.request(ECHO, Echo(number, "x"), Echo)
        taken.append((time.perf_counter() - began) * 1000)
    return taken[WARM_UP:]
