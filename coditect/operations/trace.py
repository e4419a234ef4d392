"""The use case that shows, from ledger, queues and agents, what happened to a task, as a tree with durations.

No collector is asked, and nothing has to be switched on. All of a workflow or a durable task comes from the ledger. Of
a direct task there is what its message carries: a task that waits, runs, is tried again or was given up is found with
its failed attempts; one that has completed has left nothing behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import ControlPlaneRequired, NotFound
from coditect.model.ids import is_uuid
from coditect.operations.connections import Connections
from coditect.operations.locate import TaskLocation, TaskPlace, find_task
from coditect.operations.workflows import in_order
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import NodeRow, WorkflowRow

MOST_DEEP = 64
"""The deepest nesting of child workflows that a path follows."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A step of a task's path, with the steps below it: a workflow, a node, an attempt, or the task's present place."""

    kind: str
    """workflow, node, attempt, task, redrive, or dead letter; for a task under way: waiting, working, retrying."""
    name: str
    state: str = ""
    agent: str = ""
    """The agent that had the attempt, or has the task; of an approval, the person who answered."""
    began_ms: int | None = None
    ended_ms: int | None = None
    waited_ms: int | None = None
    """How long it waited: a node for its publication, an attempt in its queue; None where it is not known."""
    ran_ms: int | None = None
    """How long it ran, from its start; None while it runs, or where the start is not known."""
    reason: str = ""
    trace: str = ""
    """The traceparent of the attempt's span, where it was traced."""
    below: tuple[Hop, ...] = ()


async def task_path(opened: Connections, target: str, *, capability: str | None = None) -> Hop:
    """Return what happened to a workflow, a node of one (`<workflow>:<node>`) or a task, as a tree of steps.

    `capability` names that of a direct task that no agent offers any more.

    Raises:
        NotFound: when neither the ledger, nor an agent, nor a queue has it; so with a direct task that has completed.
        ControlPlaneRequired: when a node's or durable task's id is given and no dispatcher answers.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    workflow, _, node = target.partition(":")
    if not is_uuid(workflow):
        raise NotFound("This is no id of a task or workflow", given=target[:80], fix="coditect workflow list")
    async with opened.fleet() as client:
        try:
            return await _workflow_path(client, workflow, node=node)
        except (NotFound, ControlPlaneRequired):
            if node:
                raise
    return await _direct_path(opened, target, capability)


async def _workflow_path(client: Client, workflow: str, *, node: str = "", depth: int = 0) -> Hop:
    run = client.workflows.get(workflow)
    overview = await run.overview()
    nodes = [row async for row in run.nodes()]
    if node:
        nodes = [row for row in nodes if row.name == node or row.name.startswith((f"{node}[", f"{node}."))]
        if not nodes:
            raise NotFound("The workflow has no such node", workflow=workflow, node=node, name=overview.name)
    attempts = await _attempts(run, node)
    children = {
        child: await _workflow_path(client, child, depth=depth + 1)
        for row in nodes
        for child in row.children
        if depth < MOST_DEEP
    }
    below = tuple(node_hop(row, attempts.get(row.name, ()), children) for row in in_order(nodes))
    return below[0] if node and len(below) == 1 else workflow_hop(overview, below)


async def _attempts(run: WorkflowRun, node: str) -> Mapping[str, Sequence[AttemptRow]]:
    found: dict[str, list[AttemptRow]] = {}
    async for row in run.attempts(node or None):
        found.setdefault(row.node, []).append(row)
    return found


def workflow_hop(row: WorkflowRow, below: tuple[Hop, ...]) -> Hop:
    """Convert the control plane's report of a workflow to a step in the tree of what happened, with the steps below."""
    return Hop(
        "workflow",
        f"{row.name} {row.workflow}",
        row.state.value,
        began_ms=row.accepted_at_ms,
        ended_ms=row.finished_at_ms,
        ran_ms=_between(row.accepted_at_ms, row.finished_at_ms),
        reason=row.reason,
        below=below,
    )


def node_hop(row: NodeRow, attempts: Sequence[AttemptRow], children: Mapping[str, Hop]) -> Hop:
    """Convert the report of a node to a step in the tree of what happened, with its attempts and child workflows.

    An attempt with the number of the one before it is a redrive, or was handed to another agent before it began.
    """
    ordered = sorted(
        (attempt for attempt in attempts if attempt.publication), key=lambda one: (one.fence, one.publication)
    )
    befores = (None, *ordered[:-1])
    steps = [_attempt_hop(one, again=_is_redrive(before, one)) for before, one in zip(befores, ordered, strict=False)]
    inner = [children[child] for child in row.children if child in children]
    published = ordered[0].published_at_ms if ordered else row.published_at_ms
    return Hop(
        "node",
        row.name,
        row.state.value,
        "" if row.fence else row.agent,
        row.ready_at_ms,
        row.finished_at_ms,
        _between(row.ready_at_ms, published) if len(ordered) == 1 else None,
        _between(ordered[0].published_at_ms if ordered else row.ready_at_ms, row.finished_at_ms),
        _why(row.reason, row.message),
        below=(*steps, *inner),
    )


def _is_redrive(before: AttemptRow | None, attempt: AttemptRow) -> bool:
    return before is not None and attempt.attempt == 1 and before.finished_at_ms is not None


def _attempt_hop(row: AttemptRow, *, again: bool) -> Hop:
    return Hop(
        "redrive" if again else "attempt",
        str(row.attempt),
        row.status,
        row.agent,
        row.published_at_ms,
        row.finished_at_ms,
        _between(row.published_at_ms, row.started_at_ms),
        _between(row.started_at_ms, row.finished_at_ms),
        _why(row.reason, row.message),
    )


async def _direct_path(opened: Connections, task_id: str, capability: str | None) -> Hop:
    found = await find_task(opened, task_id, capability=capability)
    if found.best is None:
        fix = "a direct task that has completed leaves nothing: submit with --detach, or switch tracing on"
        raise NotFound(
            "No agent and no queue has this task, and the control plane does not know it", id=task_id, fix=fix
        )
    return direct_hop(task_id, found.best)


def direct_hop(task_id: str, seen: TaskLocation) -> Hop:
    """Return the path of a direct task that was found: failed attempts, redrives, and the agent or queue it is in."""
    told = seen.story
    attempts = tuple(_failed_hop(error) for error in told.errors)
    redrives = (Hop("redrive", str(told.redrives)),) if told.redrives else ()
    dead = seen.place in (TaskPlace.DEAD, TaskPlace.UNROUTED)
    where = Hop(
        "dead letter" if dead else seen.place.value,
        seen.queue or "",
        seen.reason,
        seen.agent_id or "",
        began_ms=told.dead_at_ms if dead else None,
    )
    name = f"{seen.capability or ''} {task_id}".strip()
    state = "dead" if dead else seen.place.value
    return Hop("task", name, state, began_ms=told.published_at_ms, below=(*attempts, *redrives, where))


def _failed_hop(attempt: Mapping[str, Any]) -> Hop:
    """Convert a failed attempt, as the task's message records it, to a step in the tree of what happened to it."""
    return Hop(
        "attempt",
        str(attempt.get("attempt", "")),
        "failed",
        str(attempt.get("agent") or ""),
        ended_ms=attempt.get("at_ms"),
        reason=_why(str(attempt.get("type") or attempt.get("reason") or ""), str(attempt.get("message") or "")),
        trace=str(attempt.get("trace") or ""),
    )


def _between(begin_ms: int | None, end_ms: int | None) -> int | None:
    return None if begin_ms is None or end_ms is None else max(0, end_ms - begin_ms)


def _why(reason: str, message: str) -> str:
    return ": ".join(part for part in (reason, message) if part)
