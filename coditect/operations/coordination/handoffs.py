"""Use cases for handoffs of running tasks between agents: list them, show one, and withdraw one."""

from __future__ import annotations

from coditect.collaboration.handoffs import HandoffRow
from coditect.operations.connections import Connections


async def list_handoffs(
    opened: Connections,
    *,
    task: str | None = None,
    workflow: str | None = None,
    agent: str | None = None,
    open_only: bool = False,
    most: int,
) -> list[HandoffRow]:
    """Return at most `most` handoffs: all, or those of a task, a workflow or an agent."""
    async with opened.fleet() as client:
        found = client.handoffs.list(task=task, workflow=workflow, agent=agent, open_only=open_only, most=most)
        return [row async for row in found]


async def show_handoff(opened: Connections, handoff: str) -> HandoffRow:
    """Return a handoff of a task, with the context that the agent which offers the task passes on.

    Raises:
        NotFound: when it is unknown, or its workflow is not kept any more.
    """
    async with opened.fleet() as client:
        return await client.handoffs.show(handoff)


async def withdraw_handoff(opened: Connections, handoff: str, *, by: str, reason: str) -> HandoffRow:
    """Withdraw an open handoff, so that the task stays with its owner, and return the handoff's present state.

    Raises:
        NotFound: when it is unknown, or its workflow is not kept any more.
    """
    async with opened.fleet() as client:
        return await client.handoffs.withdraw(handoff, by=by, reason=reason)
