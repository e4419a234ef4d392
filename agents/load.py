"""The load test's agent: waits as long as a task says, then logs the execution as a line of a file, the effect log.

The agent is no example of work; it exists so that ``coditect load`` can compare what was submitted, what was answered
and what really happened. One line per execution: ``<task_id> <agent_id> <pid> <attempt>``.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from coditect import Agent, Context, Retry

load = Agent("load", version="1.0.0", slots=50, tags=frozenset({"test"}))


class LoadWork(BaseModel):
    """The input of a load test's task: how many milliseconds to wait."""

    model_config = ConfigDict(extra="forbid")

    milliseconds: int = Field(ge=0, le=60_000)


class LoadDone(BaseModel):
    """The result of a load test's task: task id, attempt, and the agent and process that executed the task."""

    task_id: str
    agent_id: str
    pid: int
    attempt: int


@load.capability(
    "load.work",
    timeout="2m",
    retry=Retry(max_attempts=5, first="100ms", cap="2s"),
    description="Waits for a time and appends one line to the effect log. For load tests only.",
    tags=frozenset({"test"}),
    cost=0.0,
)
async def work(task: LoadWork, ctx: Context) -> LoadDone:
    """Wait as long as the task says, then append one line to the effect log, the file that counts executions.

    A wait that is canceled or killed leaves no line.
    """
    await asyncio.sleep(task.milliseconds / 1000)
    done = LoadDone(task_id=ctx.task_id, agent_id=ctx.agent_id, pid=os.getpid(), attempt=ctx.attempt)
    await asyncio.to_thread(append_effect, effect_log(), done)
    return done


def effect_log() -> Path:
    """Return the path of the effect log: CODITECT_LOAD_LOG, or ``.coditect/load/effects.log`` in the working folder."""
    return Path(os.environ.get("CODITECT_LOAD_LOG") or ".coditect/load/effects.log")


def append_effect(log: Path, done: LoadDone) -> None:
    """Append one line to the effect log in a single write, so that lines of several processes never mix."""
    line = f"{done.task_id} {done.agent_id} {done.pid} {done.attempt}\n".encode()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
