"""Values that the shell completes from the fleet: capabilities, agents, workflows and durable tasks.

The person who presses Tab waits for it: the fleet has a second to answer. Where it does not, or none is there, nothing
is completed and nothing is said.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, TypeAlias

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.errors import CoditectError

if TYPE_CHECKING:
    from coditect.operations.connections import Connections
    from coditect.workflow.rows import WorkflowRow

ANSWER_SECONDS = 1.0
MOST = 100
"""How many workflows are offered, the latest ones."""

Offer: TypeAlias = tuple[str, str]
"""A value, and what a shell shows beside it."""


def complete_capability(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return living agents' capabilities that begin with the typed text, with descriptions; [] if Redis is silent."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.operations.fleet import find_offers
        from coditect.registry.port import Search

        return [(one.spec.name, one.spec.description) for one in await find_offers(opened, Search())]

    return _offered(context, incomplete, look)


def complete_agent(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return the ids of living agents that begin with the typed text, with their status; [] if Redis is silent."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.operations.fleet import find_agents
        from coditect.registry.port import Search

        return [(one.agent_id, one.load.status.value) for one in await find_agents(opened, Search())]

    return _offered(context, incomplete, look)


def complete_workflow(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return those ids of the latest 100 workflows that begin with the typed text, each with its name and state."""

    async def look(opened: Connections) -> Iterable[Offer]:
        return [(row.workflow, _about(row)) for row in await _workflows(opened)]

    return _offered(context, incomplete, look)


def complete_task(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of durable tasks that begin with the typed text: of the latest 100 workflows, those of one node."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.client.durable import NODE

        alone = [row for row in await _workflows(opened) if row.total == 1]  # as the workflow of a durable task is
        return [(f"{row.workflow}:{NODE}", _about(row)) for row in alone]

    return _offered(context, incomplete, look)


async def _workflows(opened: Connections) -> list[WorkflowRow]:
    from coditect.operations.workflows.requests import WorkflowFilter, list_workflows

    return await list_workflows(opened, WorkflowFilter(), most=MOST)


def _about(row: WorkflowRow) -> str:
    return f"{row.name}, {row.state.value}"


def _offered(
    context: typer.Context, incomplete: str, look: Callable[[Connections], Awaitable[Iterable[Offer]]]
) -> list[Offer]:
    async def in_time() -> Iterable[Offer]:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await look(connections(context))

    with redirect_stderr(io.StringIO()):  # what a command says of addresses would land in the line that is typed
        try:
            return [offer for offer in run_loop(in_time()) if offer[0].startswith(incomplete)]
        except (CoditectError, OSError, TimeoutError):
            return []
