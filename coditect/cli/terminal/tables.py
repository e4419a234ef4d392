"""The tables of workflows, nodes, attempts, events, paths and diagnoses, which several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import typer

from coditect.cli.terminal.output import Aside, FieldsView, Output, TableView, View, instant, render
from coditect.errors import NotFound
from coditect.operations.locate import WhyNot
from coditect.operations.trace import Hop
from coditect.operations.workflows import WORST_FIRST, WorkflowEvent, in_order
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import NodeRow, WorkflowRow
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
            **({"labels": [f"{name}={value}" for name, value in row.labels.items()]} if row.labels else {}),
            "shard": row.shard,
            "accepted": instant(row.accepted_at_ms),
            "finished": instant(row.finished_at_ms),
            "took": _span(row.accepted_at_ms, row.finished_at_ms),
            "nodes": [f"{count} {state.value}" for state, count in row.counts.items()],
        }
    )


def nodes_table(rows: Sequence[NodeRow], *, limit: int = MOST_ROWS) -> list[View]:
    """Return a table of a workflow's nodes in graph order; if over `limit`, only the worst, worst first, and a note."""
    shown: Sequence[NodeRow] = in_order(rows)
    if len(rows) > limit:
        rank = {state: number for number, state in enumerate(WORST_FIRST)}
        shown = sorted(rows, key=lambda row: rank.get(row.state, len(rank)))[:limit]
    columns = ("node", "state", "attempt", "agent", "started", "took", "why")
    table = TableView(columns, [_node(row) for row in shown], "No nodes.")
    cut = f"{len(shown)} shown of {len(rows)} nodes, the failed ones first; --output json has them all."
    return [table] if len(shown) == len(rows) else [table, Aside(cut)]


def history_table(events: Sequence[WorkflowEvent]) -> TableView:
    """Return a table of a workflow's recorded events, in the given order."""
    columns = ("at", "event", "node", "attempt", "agent", "why")
    cells = [
        (instant(row.at_ms), row.event, row.node, row.attempt or None, row.agent, _why(row.reason, row.message))
        for row in events
    ]
    return TableView(columns, cells, "Nothing was recorded.")


def attempts_table(rows: Sequence[AttemptRow], *, limit: int = MOST_ROWS) -> list[View]:
    """Return a table of attempts (agent, times, error), first published first; if cut to `limit` rows, add a note."""
    columns = ("node", "attempt", "fence", "agent", "status", "published", "started", "took", "error")
    by_time = sorted(rows, key=lambda row: (row.published_at_ms or 0, row.fence))
    table = TableView(columns, [_attempt(row) for row in by_time[:limit]], "No attempts.")
    cut = f"{limit} shown of {len(rows)} attempts; --output json has them all."
    return [table] if len(rows) <= limit else [table, Aside(cut)]


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


def path_table(path: Hop) -> TableView:
    """Return the path of a task or workflow as a table, whose first column draws the steps as a tree."""
    return TableView(("step", "state", "agent", "at", "waited", "ran", "why"), list(_steps(path)))


def _steps(hop: Hop, stem: str = "", branch: str = "") -> Iterator[tuple[object, ...]]:
    """Yield a table row for a step of a task's or workflow's path, and then for each step below it, drawn as a tree."""
    reason = hop.reason if len(hop.reason) <= WIDEST_CELL else f"{hop.reason[: WIDEST_CELL - 1]}…"
    at = instant(hop.began_ms if hop.began_ms is not None else hop.ended_ms)
    step = f"{branch}{hop.kind} {hop.name}".rstrip()
    yield step, hop.state, hop.agent or None, at, _seconds(hop.waited_ms), _seconds(hop.ran_ms), reason or None
    for number, step_below in enumerate(hop.below, 1):
        last = number == len(hop.below)
        yield from _steps(step_below, stem + ("   " if last else "│  "), stem + ("└─ " if last else "├─ "))


def _seconds(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else f"{milliseconds / 1000:.3f} s"


def show_why_not(answer: WhyNot, output: Output) -> None:
    """Print why agents would or would not take a task; exit 4 when the capability or the task is unknown."""
    render(output, answer, *_why_views(answer))
    if not answer.verdict.known:
        raise typer.Exit(NotFound.exit_code)


def _why_views(answer: WhyNot) -> Iterator[View]:
    yield f"{answer.verdict.sentence}."
    if answer.verdict.fix:
        yield f"Fix: {answer.verdict.fix}"
    if answer.found is not None:
        for seen in answer.found.locations:
            yield f"Seen: {seen.place} {seen.queue or seen.agent_id}"
        yield Aside(f"{len(answer.found.looked)} queues were looked through, {answer.found.asked} agents answered.")
    for place in answer.unseen:
        yield f"Perhaps {place}."
    if answer.explanation is None:
        return
    rows = [(agent.agent_id, agent.version, agent.obstacle is None, agent.text) for agent in answer.explanation.agents]
    yield ""
    yield TableView(("agent", "version", "takes it", "why"), rows, "No agent is registered.")
    queues = [
        (queue.name, queue.messages if queue.exists else "no queue", queue.consumers if queue.exists else None)
        for queue in answer.explanation.queues
    ]
    yield ""
    yield TableView(("queue", "waiting", "consumers"), queues)
