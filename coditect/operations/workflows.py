"""Use cases for workflows: show them, tell what happened to them, and explain their failures.

A call to the control plane raises ControlPlaneRequired when no dispatcher answers, BrokerUnavailable (retryable) when
the broker does not, and NotFound for a workflow or a node that the control plane does not have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from coditect.errors import TaskError
from coditect.operations.connections import Connections
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.definition import COMPENSATION, Definition, Each
from coditect.workflow.rows import NodeInput, NodeRow, RestoreRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:
    from coditect.client.workflow_run import Ending

MOST_NAMED_CAUSES = 5
"""The largest number of nodes that an error message names."""
WORST_FIRST = (TaskState.DEAD, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELED)
"""The states of nodes that ended without a value, the worst first."""
_NEVER_RAN = frozenset({"predecessor", "canceled"})
_CONSEQUENCES = _NEVER_RAN | {"element"}
"""The reasons of nodes that ended without a value only because another node did."""
_ENDED: Mapping[TaskState, str] = {
    TaskState.FAILED: "failed",
    TaskState.DEAD: "was given up",
    TaskState.REJECTED: "was rejected",
}


@dataclass(frozen=True, slots=True)
class AcceptedWorkflow:
    """A workflow that the control plane accepted, with its state."""

    id: str
    state: WorkflowState
    new: bool
    """Whether this start created the workflow; False when an earlier start had the same key."""


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """A workflow with its nodes and their attempts."""

    row: WorkflowRow
    nodes: list[NodeRow]
    attempts: list[AttemptRow]
    ending: Ending | None
    """The end of the one node asked for; None without such a node, or before its end."""
    input: NodeInput | None
    """What the one node asked for was given; None without such a node."""


async def show_nodes(opened: Connections, workflow: str) -> tuple[str, list[NodeRow]]:
    """Return a workflow's name, and the control plane's reports of its nodes."""
    async with opened.fleet() as client:
        run = client.workflows.get(workflow)
        return (await run.overview()).name, [row async for row in run.nodes()]


async def show_workflow(opened: Connections, workflow: str, node: str | None) -> WorkflowDetails:
    """Return a workflow with its nodes and attempts; with `node`, only that node's, with its input and any result."""
    async with opened.fleet() as client:
        run = client.workflows.get(workflow)
        overview = await run.overview()
        ending, given = (None, None) if node is None else (await run.look(node), await run.input(node))
        nodes = [row async for row in run.nodes() if node in (None, row.name)]
        attempts = [row async for row in run.attempts(node)]
        return WorkflowDetails(
            overview, nodes, attempts, ending if ending is not None and ending.state.terminal else None, given
        )


def failure_of(row: WorkflowRow, nodes: Sequence[NodeRow]) -> TaskError | None:
    """Return the error of a workflow that ended, with the first cause; None for a completed one."""
    if row.state is WorkflowState.COMPLETED:
        return None
    unended = [node.name for node in nodes if node.state in WORST_FIRST]
    ended = row.ended_as or row.state
    again = "start it again"
    if row.state is not WorkflowState.COMPENSATED:
        again = f"`coditect workflow resume {row.workflow}`"
    return TaskError(
        f"The workflow {'failed' if ended is WorkflowState.FAILED else f'was {ended.value}'}",
        cause=first_cause(nodes),
        workflow=row.workflow,
        reason=row.reason,
        nodes=tuple(unended if len(unended) <= MOST_NAMED_CAUSES else [*unended[:MOST_NAMED_CAUSES], "…"]),
        **({} if row.ended_as is None else {"state": row.state.value}),
        fix=f"`coditect workflow get {row.workflow}` has every attempt; mend the cause, then {again}",
    )


def first_cause(rows: Sequence[NodeRow]) -> str:
    """Describe a workflow's first failure and what followed: `fetch[12] failed: no such file`; empty without one."""
    failed = [row for row in rows if row.state in _ENDED and row.reason not in _CONSEQUENCES]
    if not failed:
        return ""
    first = min(failed, key=lambda row: (row.finished_at_ms or 0, row.name))
    others = len(failed) - 1
    idle = sum(row.reason in _NEVER_RAN and not row.fence for row in rows)
    parts = [
        f"{first.name} {_ENDED[first.state]}: {first.message or first.reason}",
        f"{others} more failed by themselves" if others else "",
        f"{idle} {'node' if idle == 1 else 'nodes'} did not run" if idle else "",
    ]
    return "; ".join(part for part in parts if part)


def likely_mistakes(definition: Definition) -> list[str]:
    """Return a warning for each map node that declares no input: its tasks get `{}`, not the elements of the list."""
    return [
        f"{node.name} gives {{}} to each task; `input: {{$from: item}}` gives the element of its list."
        for node in definition.nodes
        if isinstance(node.work, Each) and node.work.call.input is None
    ]


def in_order(rows: Sequence[NodeRow]) -> list[NodeRow]:
    """Return nodes sorted by their longest distance from a root; map elements and compensations follow their node."""
    after = {row.name: row.after for row in rows}
    depths: dict[str, int] = {}
    to_see = list(after)
    while to_see:
        name = to_see[-1]
        ahead = [one for one in after[name] if one in after and one not in depths]
        if ahead and name not in depths:
            to_see += ahead
            continue
        depths.setdefault(name, max((depths[one] + 1 for one in after[name] if one in depths), default=0))
        to_see.pop()

    def place(row: NodeRow) -> tuple[int, str, int, str]:
        name, _, index = row.name.removesuffix(COMPENSATION).partition("[")
        return depths.get(name, depths[row.name]), name, int(index[:-1]) if index[:-1].isdecimal() else -1, row.name

    return sorted(rows, key=place)


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
        run = client.workflows.get(workflow)
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
