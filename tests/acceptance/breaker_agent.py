"""An agent whose handler calls a stub dependency: a folder that is down while it holds the file `down`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from coditect import Agent, Breaker, Context, Retry

FOLDER = Path(os.environ["STUB_FOLDER"])
RESET_SECONDS = 3.0
FAILURES = 3

agent = Agent("breaker-agent", slots=2)


@agent.capability(
    "stub.call",
    breaker=Breaker("stub", failures=FAILURES, on=(OSError,), reset=RESET_SECONDS),
    retry=Retry(max_attempts=5, first="100ms"),
)
async def call(number: int, ctx: Context) -> int:
    down = (FOLDER / "down").exists()
    with (FOLDER / "calls").open("a") as calls:
        calls.write(f"{time.time()} {ctx.attempt} {ctx.task_id} {'down' if down else 'up'}\n")
    if down:
        raise OSError("the dependency is down")
    return number
