"""Tables of workflows, nodes and attempts for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coditect.cli.terminal.output import Aside, FieldsView, TableView, View, instant
from coditect.operations.workflows.history import WorkflowEvent
from coditect.operations.workflows.requests import WORST_FIRST, in_order
from coditect.workflow.rows import AttemptRow, NodeRow, WorkflowRow
from coditect.workflow.states import TaskState

MOST_ROWS = 200
"""The largest number of nodes or attempts that a table shows."""
WIDEST_CELL = 60


def workflow_fields(row: WorkflowRow) -> FieldsView:
    """Return a workflow's own fields for printing: state, times, key, shard and node counts."""
    return FieldsView(
        {
            "workflow": row.workflow,
            "name": row.name,
            "state": row.state.value,
            **({} if row.ended_as is None else {"ended as": row.ended_as.value}),
            **({"parent": f"{row.parent}, node {row.parent_node}"} if row.parent else {}),
            "reason": row.reason,
            "key": row.key,
            **({"labels": [f"{name}={told}" for name, told in row.labels.items()]} if row.labels else {}),
            "shard": row.shard,
            "accepted": instant(row.accepted_at_ms),
            "finished": instant(row.finished_at_ms),
            "took": _span(row.accepted_at_ms, row.finished_at_ms),
            "nodes": [f"{count} {state.value}" for state, count in row.counts.items()],
        }
    )


def nodes_table(rows: Sequence[NodeRow], *, most: int = MOST_ROWS) -> list[View]:
    """Return a table of a workflow's nodes in graph order; if over `most`, only the worst, worst first, and a note."""
    shown: Sequence[NodeRow] = in_order(rows)
    if len(rows) > most:
        rank = {state: number for number, state in enumerate(WORST_FIRST)}
        shown = sorted(rows, key=lambda row: rank.get(row.state, len(rank)))[:most]
    columns = ("node", "state", "attempt", "agent", "started", "took", "why")
    table = TableView(columns, [_node(row) for row in shown], "No nodes.")
    cut = f"{len(shown)} shown of {len(rows)} nodes, the failed ones first; --output json has them all."
    return [table] if len(shown) == len(rows) else [table, Aside(cut)]


def history_table(events: Sequence[WorkflowEvent]) -> TableView:
    """Return a table of a workflow's recorded events, in the given order."""
    columns = ("at", "event", "node", "attempt", "agent", "why")
    cells = [
        (instant(one.at_ms), one.event, one.node, one.attempt or None, one.agent, _why(one.reason, one.message))
        for one in events
    ]
    return TableView(columns, cells, "Nothing was recorded.")


def attempts_table(rows: Sequence[AttemptRow], *, most: int = MOST_ROWS) -> list[View]:
    """Return a table of attempts (agent, times, error), first published first; if cut to `most` rows, add a note."""
    columns = ("node", "attempt", "fence", "agent", "status", "published", "started", "took", "error")
    by_time = sorted(rows, key=lambda row: (row.published_at_ms or 0, row.fence))
    table = TableView(columns, [_attempt(row) for row in by_time[:most]], "No attempts yet.")
    cut = f"{most} shown of {len(rows)} attempts; --output json has them all."
    return [table] if len(rows) <= most else [table, Aside(cut)]


def workflows_table(rows: Iterable[WorkflowRow]) -> TableView:
    """Return a table with one row for each workflow."""
    columns = ("workflow", "name", "state", "nodes", "ended", "failed", "accepted", "took")
    return TableView(columns, [_workflow(row) for row in rows], "No workflows.")


def _workflow(row: WorkflowRow) -> tuple[object, ...]:
    failed = sum(row.counts.get(state, 0) for state in WORST_FIRST)
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
        row.agent or next(reversed(row.children), None),
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
