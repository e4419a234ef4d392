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


def complete_capability(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return living agents' capabilities that begin with the typed text, with descriptions; [] if Redis is silent."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.operations.fleet import find_offers
        from coditect.registry.port import Search

        return [(offer.spec.name, offer.spec.description) for offer in await find_offers(opened, Search())]

    return _offered(context, incomplete, look)


def complete_agent(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return the ids of living agents that begin with the typed text, with their status; [] if Redis is silent."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.operations.fleet import find_agents
        from coditect.registry.port import Search

        return [(record.agent_id, record.load.status.value) for record in await find_agents(opened, Search())]

    return _offered(context, incomplete, look)


def complete_workflow(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return those ids of the latest 100 workflows that begin with the typed text, each with its name and state."""

    async def look(opened: Connections) -> Iterable[Offer]:
        return [(row.workflow, _about(row)) for row in await _workflows(opened)]

    return _offered(context, incomplete, look)


def complete_approval(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of open approvals that begin with the typed text, each with its question."""

    async def look(opened: Connections) -> Iterable[Offer]:
        rows = await listed(opened, lambda client: client.approvals.list(limit=MOST))
        return [(row.id, row.question) for row in rows]

    return _offered(context, incomplete, look)


def complete_task(context: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of durable tasks that begin with the typed text: of the latest 100 workflows, those of one node."""

    async def look(opened: Connections) -> Iterable[Offer]:
        from coditect.client.handle import DURABLE_NODE

        alone = [row for row in await _workflows(opened) if row.total == 1]  # as the workflow of a durable task is
        return [(f"{row.workflow}:{DURABLE_NODE}", _about(row)) for row in alone]

    return _offered(context, incomplete, look)


async def _workflows(opened: Connections) -> list[WorkflowRow]:
    return await listed(opened, lambda client: client.workflows.list(limit=MOST))


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
