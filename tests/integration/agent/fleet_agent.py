"""The agent that the fault tests run: each task takes its time and leaves its id in an effect log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from coditect import Agent, Context

worker = Agent("worker", slots=16)


def _note(what: str, ctx: Context) -> None:
    line = f"{what} {ctx.task_id} {os.getpid()}\n".encode()
    descriptor = os.open(Path(os.environ["EFFECT_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)  # one write of a short line to an O_APPEND file is atomic
    os.close(descriptor)


@worker.capability("work.do", timeout="60s")
async def work(milliseconds: int, ctx: Context) -> int:
    _note("start", ctx)
    await asyncio.sleep(milliseconds / 1000)
    _note("end", ctx)
    return milliseconds


@worker.capability("work.parts", timeout="120s")
async def parts(most: int, ctx: Context) -> AsyncIterator[str]:
    """Yield parts of 1 kB: the process and the number of the part."""
    try:
        for number in range(most):
            yield f"{os.getpid()} {number}".ljust(1_000)
    finally:
        _note("closed", ctx)


@worker.capability("work.ask", timeout="60s")
async def ask(milliseconds: int, ctx: Context) -> int:
    _note("start", ctx)
    answer = int(await ctx.request("work.do", milliseconds, timeout="50s"))
    _note("end", ctx)
    return answer
