"""The agent of the test of concurrency by key: each run leaves its begin and end in the effect log."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from coditect import Agent, Context

builds = Agent("builds", slots=8)


def _note(what: str, repo: str, number: int) -> None:
    line = f"{what} {repo} {number} {time.time():.6f} {os.getpid()}\n".encode()
    descriptor = os.open(Path(os.environ["EFFECT_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)  # one write of a short line to an O_APPEND file is atomic
    os.close(descriptor)


@builds.capability("repo.build", concurrency=("{input.repo}", 1))
async def build(task: dict[str, str], ctx: Context) -> int:
    repo, number = task["repo"], int(task["number"])
    _note("begin", repo, number)
    await asyncio.sleep(float(task["seconds"]))
    _note("end", repo, number)
    return ctx.attempt
