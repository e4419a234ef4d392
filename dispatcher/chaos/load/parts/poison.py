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

from coditect import Agent, CoditectError, Context, Retry
from coditect.client.client import Client
from dispatcher.chaos.load.parts.part import LoadPart
from dispatcher.chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from dispatcher.recorder.history import Note, Type

SUICIDE, DEAF = "chaos.suicide", "chaos.deaf"
REASONS = {SUICIDE: ("process_died",), DEAF: ("timeout", "process_died")}
"""The reasons with which the tasks of each capability may fail; a process that blocks is ended at its timeout."""
MOST_ATTEMPTS = 2
DEAF_SECONDS = 12.0
"""How long a handler swallows its cancellation: longer than its attempt lasts, and too short to end its agent."""
RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")
AGES_SECONDS = 600.0


def _terminate(_: str) -> bool:
    os.kill(os.getpid(), signal.SIGTERM)
    return True


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
        """Go on whatever cancels it, and record the first cancellation as the end of the execution."""
        said = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence}
        note(Type.INVOKE, "execute", ctx.task_id, **said)
        now = asyncio.get_running_loop().time
        end = now() + DEAF_SECONDS
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(DEAF_SECONDS)
        note(Type.FAIL, "execute", ctx.task_id, **said)
        while (left := end - now()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)


async def poison(capability: str, load: WorkflowLoad) -> None:
    """Submit one task of a capability, and record how it failed."""
    client: Client = load.client
    try:
        handle = await client.submit(capability)
    except CoditectError:
        await asyncio.sleep(PAUSE_SECONDS)
        return
    load.accepted(handle.task_id, ends=("failed",), most=MOST_ATTEMPTS, poison=capability)
    try:
        outcome = await handle.outcome(timeout=load.pace.wait_seconds)
    except CoditectError:
        load.over(handle.task_id, None)
        return
    reason = "" if outcome.failure is None else outcome.failure.reason
    load.note(Type.OK, "failed", handle.task_id, reason=reason)
    load.over(handle.task_id, outcome.status.value)
    await load.soon()


SUICIDES = LoadPart("suicides", partial(poison, SUICIDE), offer_suicides)
SWALLOWED = LoadPart("swallowed cancellations", partial(poison, DEAF), offer_deaf)
