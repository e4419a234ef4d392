"""`coditect agent`: run an agent, list and show the living agents, drain one."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.capability import spec_json
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.cli.terminal.output import (
    Output,
    OutputOption,
    instant,
    megabytes,
    say,
    write_fields,
    write_json,
    write_table,
)
from coditect.errors import NotFound, ResultTimeout, Unroutable
from coditect.model.capability import nearest_names
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.port import Registry, Search
from coditect.settings.settings import read_settings
from coditect.wire import control_messages, routing

app = typer.Typer(no_args_is_help=True)

POLL_SECONDS = 0.2

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT_ID", help="As `coditect agent list` shows it.")]


@app.command("run")
def run_agent(
    target: Annotated[str, typer.Argument(metavar="PATH_OR_MODULE", help="A file, a module, or either with :name.")],
    processes: Annotated[int, typer.Option("--processes", min=1, max=256, help="Agent processes.")] = 1,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=10_000, help="Tasks at once, per process.")] = None,
    health_port: Annotated[
        int | None, typer.Option("--health-port", min=0, max=65_535, help="/livez and /readyz; 0 takes any.")
    ] = None,
) -> None:
    """Run an agent until SIGTERM or SIGINT; it finishes what it runs and returns the rest.

    \b
    Example: coditect agent run agents/reviewer.py --processes 2
    """
    from coditect.agent import program
    from coditect.agent.processes.copies import PARENT

    if processes > 1 and health_port:
        raise typer.BadParameter("Several processes cannot share one port; --health-port 0 gives each its own")
    # Through the environment, since further processes inherit nothing else.
    if slots is not None:
        os.environ["CODITECT_SLOTS"] = str(slots)
    if health_port is not None:
        os.environ["CODITECT_HEALTH_PORT"] = str(health_port)
    if PARENT not in os.environ:
        say_guesses(AMQP, REDIS)
    raise typer.Exit(program.run(target, read_settings(), processes=processes))


@app.command("list")
def list_agents(
    context: typer.Context,
    capability: Annotated[str | None, typer.Option("--capability", "-c", help="Only who offers it.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="Only with this tag.")] = None,
    keyword: Annotated[
        str | None, typer.Option("--keyword", "-k", help="Only with this word in a name, description or tag.")
    ] = None,
    status: Annotated[AgentStatus | None, typer.Option("--status", help="Only in this state.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the living agents with what they carry.

    \b
    Example: coditect agent list --capability code.review
    """
    search = Search(capability=capability, tag=tag, keyword=keyword, status=status)
    records = run_loop(_find(connections(context), search))
    if output is Output.JSON:
        write_json([agent_json(record) for record in records])
        return
    columns = (
        "agent",
        "status",
        "running",
        "slots",
        "capabilities",
        "completed",
        "failed",
        "cpu %",
        "memory",
    )
    write_table(columns, [_row(record) for record in records], empty="No agent is registered.")


@app.command("show")
def show_agent(context: typer.Context, agent_id: AgentArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one agent: its capabilities with their schemas, its load and its lease.

    \b
    Example: coditect agent show reviewer-1f2e3d4c
    """
    record = run_loop(_get(connections(context), AgentId(agent_id)))
    if output is Output.JSON:
        write_json(agent_json(record))
        return
    shown = agent_json(record)
    del shown["capabilities"]
    load = shown.pop("load")
    write_fields(shown)
    if isinstance(load, dict):
        write_fields(load)
    rows = [
        (spec.name, spec.timeout_seconds, spec.cost, spec.tags, spec.description)
        for spec in record.registration.capabilities
    ]
    write_table(("capability", "timeout s", "cost", "tags", "description"), rows)


@app.command("drain")
def drain_agent(
    context: typer.Context,
    agent_id: AgentArgument,
    wait: Annotated[
        str | None, typer.Option("--wait", help="Return when it is gone from the registry, e.g. 60s.")
    ] = None,
) -> None:
    """Ask an agent to take nothing new, finish what it runs, and end.

    \b
    Example: coditect agent drain reviewer-1f2e3d4c --wait 60s
    """
    run_loop(_drain(connections(context), AgentId(agent_id), seconds(wait) if wait else None))
    say(f"{agent_id} {'is gone' if wait else 'was asked to drain'}.")


async def _find(opened: Connections, search: Search) -> tuple[AgentRecord, ...]:
    async with opened.registry() as registry:
        return await registry.find(search)


async def _get(opened: Connections, agent_id: AgentId) -> AgentRecord:
    async with opened.registry() as registry:
        record = await registry.get(agent_id)
        if record is not None:
            return record
        others = await registry.find(Search())
    raise NotFound("No agent has this id", id=agent_id, nearest=_nearest(agent_id, others))


def _nearest(agent_id: AgentId, records: tuple[AgentRecord, ...]) -> tuple[str, ...]:
    return nearest_names(agent_id, [record.agent_id for record in records])


async def _drain(opened: Connections, agent_id: AgentId, wait_seconds: float | None) -> None:
    async with opened.broker() as broker:
        try:
            await broker.publish(
                control_messages.message(control_messages.DRAIN),
                exchange=routing.AGENTS,
                routing_key=routing.mailbox_key(agent_id),
                timeout_seconds=10.0,
            )
        except Unroutable as error:
            raise NotFound("No agent has this id", id=agent_id) from error
    if wait_seconds is not None:
        async with opened.registry() as registry:
            await _until_gone(registry, agent_id, wait_seconds)


async def _until_gone(registry: Registry, agent_id: AgentId, wait_seconds: float) -> None:
    try:
        async with asyncio.timeout(wait_seconds):
            while True:
                if await registry.get(agent_id) is None:
                    return
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        raise ResultTimeout(
            "The agent is still draining", id=agent_id, fix="It goes on by itself; look again later."
        ) from error


def _row(record: AgentRecord) -> tuple[object, ...]:
    load = record.load
    return (
        record.agent_id,
        f"{load.status.value}: {load.trouble}" if load.trouble else load.status.value,
        load.running,
        record.registration.slots,
        [spec.name for spec in record.registration.capabilities],
        load.completed,
        load.failed,
        load.cpu_percent,
        megabytes(load.resident_bytes),
    )


def agent_json(record: AgentRecord) -> dict[str, object]:
    """Return an agent as JSON values, for programs."""
    registration, load = record.registration, record.load
    return {
        "agent_id": record.agent_id,
        "name": registration.name,
        "version": registration.version,
        "status": load.status.value,
        "slots": registration.slots,
        "free_slots": record.free_slots,
        "tags": sorted(registration.tags),
        "host": registration.host,
        "pid": registration.pid,
        "started_at": instant(registration.started_at_ms),
        "lease_ms": record.lease_ms,
        "metadata": dict(registration.metadata),
        "load": {
            "running": load.running,
            "suspended": load.suspended,
            "awaiting_owner": load.awaiting_owner,
            "cpu_percent": load.cpu_percent,
            "resident_bytes": load.resident_bytes,
            "latency_ms": load.latency_ms,
            "completed": load.completed,
            "failed": load.failed,
            "trouble": load.trouble,
        },
        "capabilities": [spec_json(spec) for spec in registration.capabilities],
    }
