"""An agent whose handlers' processes are replaced after some tasks, or when they hold too much memory."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coditect import Agent, Retry

FOLDER = "REPLACED_FOLDER"
ONCE = Retry(max_attempts=1)
MANY_BYTES = 200_000_000


@asynccontextmanager
async def lifespan(agent: Agent) -> AsyncIterator[None]:
    yield
    (Path(os.environ[FOLDER]) / f"closed-{os.getpid()}").touch()


replaced = Agent("replaced", slots=3, lifespan=lifespan)
kept: list[bytes] = []


@replaced.capability("replaced.twice", process=True, max_tasks_per_process=2, retry=ONCE)
def twice(how: str) -> int:
    if how == "fail":
        raise ValueError(str(os.getpid()))
    while how == "wait" and not (Path(os.environ[FOLDER]) / "go").exists():
        time.sleep(0.01)
    if how == "die":
        os._exit(1)
    return os.getpid()


@replaced.capability("replaced.large", process=True, max_memory="150MB", retry=ONCE)
def large(how: str) -> int:
    if how == "grow":
        kept.append(b"x" * MANY_BYTES)
    return os.getpid()
