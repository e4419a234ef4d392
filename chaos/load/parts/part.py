"""The class of a load's optional parts, and the context manager with which their handlers record executions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chaos.history import Note, Type
from chaos.load.work import MOST_ATTEMPTS
from chaos.load.workflows import WorkflowLoad
from coditect import Agent, Context, Retry

PART_RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")


def _nothing(agent: Agent, note: Note) -> None:
    """Do nothing to the agent: the default for a kind of work in the load that needs no capability of its own."""


@dataclass(frozen=True, slots=True)
class LoadPart:
    """An optional kind of work in a load, such as votes or triggers: what the client does, and what agents offer."""

    name: str
    play: Callable[[WorkflowLoad], Awaitable[None]]
    """The function that the client calls again and again until the load is closed; it records what it does."""
    offer: Callable[[Agent, Note], None] = _nothing
    """The function that declares the part's capabilities on an agent, with handlers that record their executions."""


@asynccontextmanager
async def executed(ctx: Context, note: Note, **facts: Any) -> AsyncIterator[None]:
    """Record a task's execution, whose work is done in the block: as failed on an error, as unknown on a cancel."""
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
