"""Workflows, nodes and attempts as the commands show them: as tables for people, as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from coditect.cli.terminal.output import instant, say, write_fields, write_table
from coditect.workflow.definition import Definition, Each
from coditect.workflow.rows import ApprovalRow, AttemptRow, NodeRow, WorkflowRow
from coditect.workflow.states import TaskState

MOST_NAMED = 5
MOST_ROWS = 200
"""Number of nodes, and of attempts, that a table shows."""
WIDEST_CELL = 60
_WORST_FIRST = (TaskState.DEAD, TaskState.FAILED, TaskState.REJECTED, TaskState.CANCELED)
WITHOUT_A_VALUE = frozenset(_WORST_FIRST)
_NEVER_RAN = frozenset({"predecessor", "canceled"})
_CONSEQUENCES = _NEVER_RAN | {"element"}
"""Reasons of nodes that ended without a value because other nodes did."""
_ENDED: Mapping[TaskState, str] = MappingProxyType(
    {TaskState.FAILED: "failed", TaskState.DEAD: "was given up", TaskState.REJECTED: "was rejected"}
)


def row_json(row: WorkflowRow | NodeRow | AttemptRow | ApprovalRow) -> dict[str, Any]:
    """Return a row as JSON values, for programs; instants are milliseconds since the epoch."""
    return asdict(row)


def write_workflow(row: WorkflowRow) -> None:
    """Write a workflow's own fields, without its nodes."""
    write_fields(
        {
            "workflow": row.workflow,
            "name": row.name,
            "state": row.state.value,
            "reason": row.reason,
            "key": row.key,
            "shard": row.shard,
            "accepted": instant(row.accepted_at_ms),
            "finished": instant(row.finished_at_ms),
            "took": _span(row.accepted_at_ms, row.finished_at_ms),
            "nodes": [f"{count} {state.value}" for state, count in row.counts.items()],
        }
    )


def first_cause(rows: Sequence[NodeRow]) -> str:
    """Return the first failure and its consequences: `fetch[12] failed: no such file; 4 nodes did not run`."""
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


def say_notes(definition: Definition) -> None:
    """Print what may be a mistake in a definition: maps that pass no element to their tasks, and `compensate`."""
    for node in definition.nodes:
        if isinstance(node.work, Each) and node.work.call.input is None:
            say(f"{node.name} gives {{}} to each task; `input: {{$from: item}}` gives the element of its list.")
    if nodes := definition.to_compensate:
        named = ", ".join([*nodes[:MOST_NAMED], "…"] if len(nodes) > MOST_NAMED else nodes)
        say(f"Nothing runs `compensate` yet; what these nodes do stays done: {named}")


def write_nodes(rows: Sequence[NodeRow], *, most: int = MOST_ROWS) -> None:
    """Write the nodes, each after its predecessors; of too many the failed ones come first."""
    shown: Sequence[NodeRow] = in_order(rows)
    if len(rows) > most:
        rank = {state: number for number, state in enumerate(_WORST_FIRST)}
        shown = sorted(rows, key=lambda row: rank.get(row.state, len(rank)))[:most]
    columns = ("node", "state", "attempt", "agent", "started", "took", "why")
    write_table(columns, [_node(row) for row in shown], empty="No nodes.")
    if len(shown) < len(rows):
        say(f"{len(shown)} shown of {len(rows)} nodes, the failed ones first; --output json has them all.")


def in_order(rows: Sequence[NodeRow]) -> list[NodeRow]:
    """Return the nodes, each after its predecessors, by the longest way from a root; elements after their map."""
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

    def place(row: NodeRow) -> tuple[int, str, int]:
        name, _, index = row.name.partition("[")
        return depths.get(name, depths[row.name]), name, int(index[:-1]) if index[:-1].isdecimal() else -1

    return sorted(rows, key=place)


def write_attempts(rows: Sequence[AttemptRow], *, most: int = MOST_ROWS) -> None:
    """Write every attempt with its agent, times and error, in the order of their publication."""
    columns = ("node", "attempt", "fence", "agent", "status", "published", "started", "took", "error")
    by_time = sorted(rows, key=lambda row: (row.published_at_ms or 0, row.fence))
    write_table(columns, [_attempt(row) for row in by_time[:most]], empty="No attempts yet.")
    if len(rows) > most:
        say(f"{most} shown of {len(rows)} attempts; --output json has them all.")


def write_workflows(rows: Iterable[WorkflowRow]) -> None:
    """Write one line for each workflow."""
    columns = ("workflow", "name", "state", "nodes", "ended", "failed", "accepted", "took")
    write_table(columns, [_workflow(row) for row in rows], empty="No workflows.")


def _workflow(row: WorkflowRow) -> tuple[object, ...]:
    failed = sum(row.counts.get(state, 0) for state in WITHOUT_A_VALUE)
    took = _span(row.accepted_at_ms, row.finished_at_ms)
    return (row.workflow, row.name, row.state, row.total, row.ended, failed, instant(row.accepted_at_ms), took)


def _node(row: NodeRow) -> tuple[object, ...]:
    asked = row.question if row.state is TaskState.AWAITING_APPROVAL else ""
    why = _why(row.reason, row.message or asked)
    begun_ms = row.started_at_ms if row.fence else row.ready_at_ms  # maps and approvals are published to nobody
    return (
        row.name,
        row.state,
        row.attempt if row.fence else None,
        row.agent or None,
        instant(begun_ms),
        _span(begun_ms, row.finished_at_ms),
        why,
    )


def _attempt(row: AttemptRow) -> tuple[object, ...]:
    times = (instant(row.published_at_ms), instant(row.started_at_ms), _span(row.started_at_ms, row.finished_at_ms))
    error = _why(row.reason, row.message)
    return (row.node, row.attempt, row.fence, row.agent or None, row.status or "under way", *times, error)


def _why(reason: str, message: str) -> str | None:
    text = ": ".join(part for part in (reason, message) if part)
    return f"{text[: WIDEST_CELL - 1]}…" if len(text) > WIDEST_CELL else text or None


def _span(begin_ms: int | None, end_ms: int | None) -> str | None:
    return None if begin_ms is None or end_ms is None else f"{max(0, end_ms - begin_ms) / 1000:.3f} s"
