"""The use case of a workflow's history: everything that the control plane recorded about it, in order of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from coditect.operations.connections import Connections
from coditect.operations.workflows.requests import in_order
from coditect.workflow.rows import AttemptRow, NodeRow, RestoreRow, WorkflowRow


@dataclass(frozen=True, slots=True)
class WorkflowEvent:
    """A recorded event of a workflow, of a node, or of a node's attempt."""

    at_ms: int
    """The instant of the event, in milliseconds since the epoch."""
    event: str
    """The thing and what it did: `workflow.accepted`, `node.ready`, `attempt.started`, `node.completed`, ..."""
    node: str = ""
    """The node's name; empty for an event of the workflow."""
    attempt: int = 0
    """The number of the attempt, from 1; 0 for an event of a workflow or node."""
    fence: int = 0
    agent: str = ""
    """The agent that had the attempt; for an approval or a restore, the person who asked for it."""
    reason: str = ""
    """Why it ended so; for a restore, the checkpoint."""
    message: str = ""


async def workflow_history(opened: Connections, workflow: str) -> list[WorkflowEvent]:
    """Return the recorded events of a workflow, its restores, nodes and attempts, the earliest first.

    Raises:
        NotFound: when there is no such workflow.
    """
    async with opened.fleet() as client:
        run = client.run(workflow)
        overview = await run.overview()
        nodes = [row async for row in run.nodes()]
        attempts = [row async for row in run.attempts()]
        restores = await run.restores()
    return history_of(overview, nodes, attempts, restores)


def history_of(
    workflow: WorkflowRow, nodes: Sequence[NodeRow], attempts: Sequence[AttemptRow], restores: Sequence[RestoreRow] = ()
) -> list[WorkflowEvent]:
    """Return the events in the reports of a workflow, its nodes, attempts and restores, by time, then graph order."""
    found = [*_of_workflow(workflow)]
    found += (WorkflowEvent(row.at_ms, "workflow.restored", agent=row.by, reason=row.checkpoint) for row in restores)
    for node in nodes:
        found += _of_node(node)
    for attempt in attempts:
        found += _of_attempt(attempt)
    places = {row.name: number for number, row in enumerate(in_order(nodes), 1)}

    def place(event: WorkflowEvent) -> tuple[int, float, float, int]:
        first = -1.0 if event.event == "workflow.accepted" else places.get(event.node, math.inf)
        number = event.fence or (0 if event.event == "node.ready" else math.inf)
        return event.at_ms, first, number, _rank(event)

    return sorted(found, key=place)


def _of_workflow(row: WorkflowRow) -> Iterator[WorkflowEvent]:
    if row.accepted_at_ms is not None:
        parent = f"child of {row.parent}, node {row.parent_node}" if row.parent else ""
        yield WorkflowEvent(row.accepted_at_ms, "workflow.accepted", message=parent)
    if row.finished_at_ms is not None:
        yield WorkflowEvent(row.finished_at_ms, f"workflow.{row.state.value}", reason=row.reason)


def _of_node(row: NodeRow) -> Iterator[WorkflowEvent]:
    if row.ready_at_ms is not None:
        yield WorkflowEvent(row.ready_at_ms, "node.ready", row.name)
    for child in row.children:
        yield WorkflowEvent(UUID(child).int >> 80, "child.started", row.name, message=child)
    if row.finished_at_ms is not None:
        who = "" if row.fence else row.agent
        end = f"node.{row.state.value}"
        yield WorkflowEvent(row.finished_at_ms, end, row.name, agent=who, reason=row.reason, message=row.message)


def _of_attempt(row: AttemptRow) -> Iterator[WorkflowEvent]:
    number, fence = row.attempt, row.fence
    if row.published_at_ms is not None:
        yield WorkflowEvent(row.published_at_ms, "attempt.published", row.node, number, fence)
    if row.started_at_ms is not None:
        yield WorkflowEvent(row.started_at_ms, "attempt.started", row.node, number, fence, row.agent)
    if row.finished_at_ms is not None:
        end, agent = f"attempt.{row.status}", row.agent
        yield WorkflowEvent(row.finished_at_ms, end, row.node, number, fence, agent, row.reason, row.message)


_BEGINNINGS = ("node.ready", "attempt.published", "attempt.started")


def _rank(event: WorkflowEvent) -> int:
    """Return an event's rank among a node's events of one instant: ready, published, started, attempt end, node end."""
    if event.event in _BEGINNINGS:
        return _BEGINNINGS.index(event.event)
    return len(_BEGINNINGS) + event.event.startswith("node.")
