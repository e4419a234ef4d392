"""The part of a load as a value, and the record of an execution in the handlers that parts offer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from coditect import Agent, Context, Retry
from dispatcher.chaos.load.work import MOST_ATTEMPTS
from dispatcher.chaos.load.workflows import WorkflowLoad
from dispatcher.witness.history import Note, Type

PART_RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")


def _nothing(agent: Agent, note: Note) -> None:
    """Declare no capability: the part needs none of its own."""


@dataclass(frozen=True, slots=True)
class LoadPart:
    """A part of a load beside its workflows and tasks, which a run draws when `Pace.parts` has its name."""

    name: str
    play: Callable[[WorkflowLoad], Awaitable[None]]
    """What the client does, again and again until the load is closed; it records all of it."""
    offer: Callable[[Agent, Note], None] = _nothing
    """What an agent offers for that, and records."""


@asynccontextmanager
async def executed(ctx: Context, note: Note, **facts: Any) -> AsyncIterator[None]:
    """Record the execution of a task around what its handler does; an error in that is recorded as its failure."""
    said = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence, **facts}
    note(Type.INVOKE, "execute", ctx.task_id, **said)
    try:
        yield
    except asyncio.CancelledError:
        note(Type.INFO, "execute", ctx.task_id, **said)
        raise
    except Exception:
        note(Type.FAIL, "execute", ctx.task_id, **said)
        raise
    note(Type.OK, "execute", ctx.task_id, **said)
