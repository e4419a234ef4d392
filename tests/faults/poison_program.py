"""The agent of the poison tests: tasks that leave a line in an effect log, and one that kills its process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from coditect import Agent, Context, Retry

agent = Agent("poisoned", slots=20)


def _note(what: str, ctx: Context) -> None:
    line = f"{what} {ctx.task_id} {ctx.attempt} {os.getpid()}\n".encode()
    descriptor = os.open(Path(os.environ["EFFECT_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)  # one write of a short line to an O_APPEND file is atomic
    os.close(descriptor)


async def _left() -> None:
    sys.exit(3)


@agent.capability("poison.work", timeout="60s", retry=Retry(max_attempts=3, first="100ms", cap="100ms"))
async def work(kind: str, ctx: Context) -> int:
    _note("start", ctx)
    await asyncio.sleep(0.1)
    match kind:
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "term" | "interrupt":
            os.kill(os.getpid(), signal.SIGTERM if kind == "term" else signal.SIGINT)
            await asyncio.sleep(50)
        case "cancel":
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(50)
        case "stop":
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0.1)
        case "leave":
            await asyncio.gather(_left())
        case _:
            await asyncio.sleep(0.1)
    _note("end", ctx)
    return ctx.attempt


@agent.capability("poison.deaf", timeout="2s", retry=Retry(max_attempts=1))
async def deaf(_: None, ctx: Context) -> None:
    _note("start", ctx)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)


@agent.capability("poison.blocked", timeout="2s", retry=Retry(max_attempts=1))
def blocked(_: None, ctx: Context) -> None:
    time.sleep(1_000)
