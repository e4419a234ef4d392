"""The agent of the wipe tests: its effect is keyed by the task's id, so that it happens once however often it runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from coditect import Agent, Context, Retry

worker = Agent("worker", slots=8)


@worker.capability("keyed.work", timeout="60s")
async def work(milliseconds: int, ctx: Context) -> str:
    log = Path(os.environ["EFFECT_LOG"])
    _note(log, f"start {ctx.task_id} {os.getpid()}")
    await asyncio.sleep(milliseconds / 1000)
    try:
        os.close(os.open(log.with_name("keyed") / ctx.task_id, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        _note(log, f"again {ctx.task_id} {os.getpid()}")
    else:
        _note(log, f"effect {ctx.task_id} {os.getpid()}")
    return ctx.task_id


@worker.capability("keyed.fail", timeout="60s", retry=Retry(max_attempts=1))
async def fail(_: dict[str, object]) -> None:
    raise ValueError("as ever")


def _note(log: Path, line: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
