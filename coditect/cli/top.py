"""`coditect top`: the fleet live on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from coditect.cli.connections import connections
from coditect.cli.terminal.options import ShownAnswer, checked, present
from coditect.cli.terminal.output import Output, OutputOption, TableView, View, instant, megabytes
from coditect.model.duration import seconds
from coditect.operations.overview import MOST_WORKFLOWS, AgentActivity, FleetOverview, RunningTask, take_overview
from coditect.operations.status import LevelQueue
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import TaskState

AGENT_COLUMNS = ("agent", "status", "slots", "runs now", "oldest", "completed", "failed", "cpu %", "memory")
QUEUE_COLUMNS = ("capability", "level", "waiting", "consumers", "in/s", "out/s", "oldest")
WORKFLOW_COLUMNS = ("workflow", "name", "progress", "working", "failed", "for")

app = typer.Typer()


@app.command("top")
def show_top(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end, for scripts.")] = False,
    every: Annotated[str, typer.Option(callback=checked, help="How often to look, at least 100ms.")] = "2s",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Most workflows.")] = MOST_WORKFLOWS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show agents, queues, workflows, breakers and dead letters, live until `q` or Ctrl-C.

    Agents are asked what they run now. Rates of queues, and the age of the oldest task where the broker knows it, need
    CODITECT_MANAGEMENT_URL. Queues that are empty and consumed are left out, JSON and YAML have them all.

    \b
    Example: coditect top --once --output json
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        overview = await take_overview(opened, most_workflows=limit)
        return ShownAnswer(asdict(overview), tuple(_views(overview)), overview.notes)

    present(look, output, watch=not once, every_seconds=max(0.1, seconds(every)))


def _views(seen: FleetOverview) -> Iterator[View]:
    yield _summary(seen)
    for table in _tables(seen):
        if table.empty or table.rows:
            yield from ("", table)


def _tables(seen: FleetOverview) -> Iterator[TableView]:
    agents = sorted(seen.agents, key=lambda agent: (-agent.running, agent.agent_id))
    levels = ((queues.capability, level) for queues in seen.queues for level in queues.levels if _moves(level))
    moving = sorted(levels, key=lambda row: (-row[1].messages, row[0], row[1].priority))
    opened = [(breaker.state.name, breaker.state.reason, instant(breaker.state.since_ms)) for breaker in seen.breakers]
    dead = [(queues.capability, queues.dead) for queues in seen.queues if queues.dead]
    yield TableView(AGENT_COLUMNS, [_agent(agent, seen.at_ms) for agent in agents], "No agent is registered.")
    yield TableView(QUEUE_COLUMNS, [_queue(*row, seen.at_ms) for row in moving])
    yield TableView(WORKFLOW_COLUMNS, [_workflow(row, seen.at_ms) for row in seen.workflows])
    yield TableView(("open breaker", "reason", "since"), opened)
    yield TableView(("dead letters of", "letters"), dead)


def _summary(seen: FleetOverview) -> str:
    busy, slots = sum(agent.running for agent in seen.agents), sum(agent.slots for agent in seen.agents)
    parts = [
        f"{len(seen.agents)} agents, {busy} of {slots} slots busy",
        f"{sum(level.messages for queues in seen.queues for level in queues.levels)} tasks wait",
        f"{len(seen.workflows)} workflows run",
        f"{len(seen.breakers)} breakers open",
        f"{sum(queues.dead for queues in seen.queues)} dead letters",
        f"{0 if seen.cluster is None else len(seen.cluster.dispatchers)} dispatchers",
    ]
    return "; ".join(parts)


def _agent(agent: AgentActivity, now_ms: int) -> tuple[object, ...]:
    tasks = agent.tasks or ()
    begun = [task.published_at_ms for task in tasks if task.published_at_ms is not None]
    status = f"{agent.status.value}: {agent.trouble}" if agent.trouble else agent.status.value
    slots = f"{agent.running}/{agent.slots}" + (f" +{agent.suspended}" if agent.suspended else "")
    oldest = _span(min(begun, default=None), now_ms)
    counts = (agent.completed, agent.failed, agent.cpu_percent, megabytes(agent.resident_bytes))
    return (agent.agent_id, status, slots, "?" if agent.tasks is None else _counted(tasks), oldest, *counts)


def _counted(tasks: tuple[RunningTask, ...]) -> list[str]:
    counts = Counter(task.capability for task in tasks)
    return [name if count == 1 else f"{name} x{count}" for name, count in counts.items()]


def _moves(level: LevelQueue) -> bool:
    return bool(level.messages or not level.consumers or level.published_per_second or level.delivered_per_second)


def _queue(capability: str, level: LevelQueue, now_ms: int) -> tuple[object, ...]:
    rates = (level.published_per_second, level.delivered_per_second)
    return (capability, level.priority, level.messages, level.consumers, *rates, _span(level.oldest_ms, now_ms))


def _workflow(row: WorkflowRow, now_ms: int) -> tuple[object, ...]:
    share = row.ended / row.total if row.total else 1.0
    failed = sum(row.counts.get(state, 0) for state in (TaskState.FAILED, TaskState.DEAD, TaskState.REJECTED))
    progress = f"{row.ended}/{row.total} {share:.0%}"
    return (
        row.workflow,
        row.name,
        progress,
        row.counts.get(TaskState.WORKING, 0),
        failed,
        _span(row.accepted_at_ms, now_ms),
    )


def _span(begun_ms: int | None, now_ms: int) -> str | None:
    """Return the time since an instant as text, in seconds, minutes or hours; None without an instant."""
    if begun_ms is None:
        return None
    passed = max(0.0, (now_ms - begun_ms) / 1000)
    if passed < 60:
        return f"{passed:.1f} s"
    return f"{passed / 60:.0f} min" if passed < 3600 else f"{passed / 3600:.1f} h"
