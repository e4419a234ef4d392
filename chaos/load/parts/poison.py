"""The parts of a load whose handlers end their agents in an orderly way, or swallow their cancellation.

Such a task is to end after few ends of agents, by the failure that it deserves.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from chaos.history import Note, Type
from chaos.load.parts.part import LoadPart
from chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from coditect import Agent, CoditectError, Context, Retry
from coditect.aio.launch import READY_FILE
from coditect.client.client import Client
from coditect.client.handle import Handle

SUICIDE, DEAF = "chaos.suicide", "chaos.deaf"
REASONS = {SUICIDE: ("process_died",), DEAF: ("timeout", "process_died")}
"""The reasons with which the tasks of each capability may fail; a process that blocks is ended at its timeout."""
MOST_ATTEMPTS = 2
DEAF_SECONDS = 12
"""How long a handler swallows its cancellation: longer than its attempt lasts, and too short to end its agent."""
RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")
AGES_SECONDS = 600.0


def _terminate(_: str) -> bool:
    """Send SIGTERM to this process; an agent, which drains then, is not ready any more, a worker process just dies."""
    ends = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if ends:
        Path(os.environ[READY_FILE]).unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGTERM)
    return ends


TERMINATE: ContextVar[Callable[[str], bool]] = ContextVar("chaos_terminate", default=_terminate)
"""The function by which a handler ends its own process, given its agent's id; it tells whether the agent ends, too."""


def offer_suicides(agent: Agent, note: Note) -> None:
    """Let an agent offer a capability whose handler sends SIGTERM to its own process."""

    @agent.capability(SUICIDE, timeout="10m", retry=RETRY, description="Ends its own process in an orderly way.")
    async def end_process(_: None, ctx: Context) -> None:
        """End the process, and wait for that."""
        said = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence}
        note(Type.INVOKE, "execute", ctx.task_id, **said)
        note(Type.FAIL, "execute", ctx.task_id, **said)
        if TERMINATE.get()(ctx.agent_id):
            note(Type.OK, "terminate", ctx.task_id, proc=ctx.agent_id)
        await asyncio.sleep(AGES_SECONDS)


def offer_deaf(agent: Agent, note: Note) -> None:
    """Let an agent offer a capability whose handler swallows each cancellation for a while."""

    @agent.capability(DEAF, timeout="1s", retry=RETRY, description="Does not end when it is canceled.")
    async def swallow(_: None, ctx: Context) -> None:
        """Go on whatever cancels it, but for a kill of its process."""
        said = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence}
        note(Type.INVOKE, "execute", ctx.task_id, **said)
        note(Type.FAIL, "execute", ctx.task_id, **said)
        for _second in range(DEAF_SECONDS):  # a process that stood still for as long is deaf to its deadline, too
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)


async def poison(capability: str, load: WorkflowLoad) -> None:
    """Submit one task of a capability, and record how it failed; return 10 s after its end or the wait for that.

    In the 10 s (`Pace.patience_seconds`) agents come back, and do other work.
    """
    client: Client = load.client
    try:
        handle = await client.submit(capability)
    except CoditectError:
        await asyncio.sleep(PAUSE_SECONDS)
        return
    load.accepted(handle.task_id, ends=("failed",), most=MOST_ATTEMPTS, poison=capability)
    await load.ends_of([_end_of(load, handle)])
    await asyncio.sleep(load.pace.patience_seconds)


async def _end_of(load: WorkflowLoad, handle: Handle) -> None:
    try:
        outcome = await handle.outcome(timeout=load.pace.task_seconds + MOST_ATTEMPTS * DEAF_SECONDS)
    except CoditectError:
        load.over(handle.task_id, None)
        return
    reason = "" if outcome.failure is None else outcome.failure.reason
    load.note(Type.OK, "failed", handle.task_id, reason=reason)
    load.over(handle.task_id, outcome.status.value)


SUICIDES = LoadPart("suicides", partial(poison, SUICIDE), offer_suicides)
SWALLOWED = LoadPart("swallowed cancellations", partial(poison, DEAF), offer_deaf)
