"""The agent of the wipe tests: its effect is keyed by the task's id, so that it happens once however often it runs."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

from coditect import Agent, Context

worker = Agent("worker", slots=8)


@worker.capability("keyed.work", timeout="60s")
async def work(milliseconds: int, ctx: Context) -> str:
    log = Path(os.environ["EFFECT_LOG"])
    _note(log, f"start {ctx.task_id} {os.getpid()}")
    await asyncio.sleep(milliseconds / 1000)
    with log.open("a+b", buffering=0) as lines:  # one write is the effect and its key: a kill falls before or behind it
        fcntl.flock(lines, fcntl.LOCK_EX)
        lines.seek(0)
        kind = "again" if f"effect {ctx.task_id} ".encode() in lines.read() else "effect"
        lines.write(f"{kind} {ctx.task_id} {os.getpid()}\n".encode())
    return ctx.task_id


def _note(log: Path, line: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
