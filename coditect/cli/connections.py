"""The broker, registry and client of the running command, and the values that the shell completes from the fleet.

The connections are injected by a test, or made by `compose`. The person who presses Tab waits for an answer: the fleet
has a second for it. Where it does not answer, or none is there, nothing is completed and nothing is said.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

import typer

from coditect.aio.loop import run_loop
from coditect.errors import CoditectError
from coditect.settings.settings import read_settings

if TYPE_CHECKING:
    from coditect.client.client import Client
    from coditect.operations.connections import Connections
    from coditect.workflow.rows import WorkflowRow


T = TypeVar("T")


def connections(context: typer.Context) -> Connections:
    """Return what opens the command's connections: what a test put into the typer context, else made from settings."""
    if context.obj is None:
        from coditect.cli.compose import RealConnections

        context.obj = RealConnections(read_settings())
    return cast("Connections", context.obj)


def ask(context: typer.Context, call: Callable[[Client], Awaitable[T]]) -> T:
    """Return what one call of a client for durable work returns, for the length of a command."""

    async def run() -> T:
        async with connections(context).fleet() as client:
            return await call(client)

    return run_loop(run())


async def listed(opened: Connections, listing: Callable[[Client], AsyncIterator[T]]) -> list[T]:
    """Return the rows of a listing of a client for durable work."""
    async with opened.fleet() as client:
        return [row async for row in listing(client)]


ANSWER_SECONDS = 1.0
MOST = 100
"""How many workflows are offered, the latest ones."""

Offer: TypeAlias = tuple[str, str]
"""A value, and what a shell shows beside it."""


def _completing(
    offers: Callable[[Connections], Awaitable[Iterable[Offer]]],
) -> Callable[[typer.Context, str], list[Offer]]:
    """Return a function that offers a shell those values that begin with the typed text; [] if the fleet is silent."""

    def complete(context: typer.Context, incomplete: str) -> list[Offer]:
        async def in_time() -> Iterable[Offer]:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await offers(connections(context))

        with redirect_stderr(io.StringIO()):  # what a command says of addresses would land in the line that is typed
            try:
                return [offer for offer in run_loop(in_time()) if offer[0].startswith(incomplete)]
            except (CoditectError, OSError, TimeoutError):
                return []

    return complete


@_completing
async def complete_capability(opened: Connections) -> Iterable[Offer]:
    """Return the capabilities of living agents, with their descriptions."""
    from coditect.operations.fleet import find_offers
    from coditect.registry.port import Search

    return [(offer.spec.name, offer.spec.description) for offer in await find_offers(opened, Search())]


@_completing
async def complete_agent(opened: Connections) -> Iterable[Offer]:
    """Return the ids of living agents, with their status."""
    from coditect.operations.fleet import find_agents
    from coditect.registry.port import Search

    return [(record.agent_id, record.load.status.value) for record in await find_agents(opened, Search())]


@_completing
async def complete_workflow(opened: Connections) -> Iterable[Offer]:
    """Return the ids of the latest 100 workflows, each with its name and state."""
    return [(row.workflow, _about(row)) for row in await _workflows(opened)]


@_completing
async def complete_approval(opened: Connections) -> Iterable[Offer]:
    """Return the ids of open approvals, each with its question."""
    rows = await listed(opened, lambda client: client.approvals.list(limit=MOST))
    return [(row.id, row.question) for row in rows]


@_completing
async def complete_task(opened: Connections) -> Iterable[Offer]:
    """Return the ids of durable tasks: of the latest 100 workflows, those of one node."""
    from coditect.client.handle import DURABLE_NODE

    alone = [row for row in await _workflows(opened) if row.total == 1]  # as the workflow of a durable task is
    return [(f"{row.workflow}:{DURABLE_NODE}", _about(row)) for row in alone]


async def _workflows(opened: Connections) -> list[WorkflowRow]:
    return await listed(opened, lambda client: client.workflows.list(limit=MOST))


def _about(row: WorkflowRow) -> str:
    return f"{row.name}, {row.state.value}"
