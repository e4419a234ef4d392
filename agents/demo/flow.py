"""The demo's workflow, `examples/repository.yaml`, whose approvals the demo grants in a person's place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect import Client, WorkflowRun
from coditect.errors import Retryable
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.graph import graph_of
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import TaskState, WorkflowState

FLOW = Path("examples") / "repository.yaml"
_ENDS_WITHIN = "10m"
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Flow:
    """A workflow of the demo after its end, with a report on each of its nodes and on each element of its maps."""

    definition: Definition
    state: WorkflowState
    rows: Sequence[NodeRow]


def read_flow(root: Path) -> Definition:
    """Read the demo's workflow, `examples/repository.yaml`.

    Raises:
        InvalidWorkflow: the file is no valid workflow.
    """
    return load_workflow(root / FLOW)


async def run_flow(
    client: Client,
    definition: Definition,
    workflow_input: Any,
    *,
    say: Callable[[str], None],
    meanwhile: Callable[[WorkflowRun], Coroutine[Any, Any, None]] | None = None,
) -> Flow:
    """Run a workflow, grant its approvals, and call `meanwhile` beside it; return the workflow when both have ended.

    Raises:
        ResultTimeout: the workflow did not end within ten minutes.
        CoditectError: the workflow could not be started.
    """
    run = await client.start(definition, workflow_input)
    say(f"Workflow {definition.name} is accepted: {run.id}")
    async with asyncio.TaskGroup() as group:
        granting = group.create_task(_grant(run, say))
        if meanwhile is not None:
            group.create_task(meanwhile(run))
        state = await run.wait(timeout=_ENDS_WITHIN)
        granting.cancel()
    return Flow(definition, state, [row async for row in run.nodes()])


async def look_at(run: WorkflowRun) -> list[NodeRow]:
    """Return the present report on each node of a workflow; an empty list when a request fails, but is retryable."""
    try:
        return [row async for row in run.nodes()]
    except Retryable:
        return []


async def _grant(run: WorkflowRun, say: Callable[[str], None]) -> None:
    """Grant each approval of a workflow as it comes, until canceled, since the demo has no person to ask."""
    while True:
        for row in (row for row in await look_at(run) if row.state is TaskState.AWAITING_APPROVAL):
            say(f"  {row.name} asks: {row.question}  Granted by the demo, for a person.")
            await run.grant(row.name, by="the demo")
        await asyncio.sleep(_LOOK_SECONDS)


def describe_flow(flow: Flow) -> str:
    """Return a workflow as plain text: each node with its state, times and agents."""
    starts = [at for row in flow.rows for at in (row.ready_at_ms, row.started_at_ms) if at is not None]
    begin = min(starts, default=0)
    end = max((row.finished_at_ms for row in flow.rows if row.finished_at_ms is not None), default=begin)
    maps = {row.name.partition("[")[0] for row in flow.rows if "[" in row.name}
    tasks = sum(bool(row.capability) and row.name not in maps for row in flow.rows)
    head = f"Workflow {flow.definition.name}: {flow.state.value} in {(end - begin) / 1000:.1f} s, {tasks} tasks"
    lines = [_cells(row, number, begin, flow.rows) for number, row in _in_order(flow)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))] if lines else []
    drawn = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([head, *(f"  {line.rstrip()}" for line in drawn)])


def _in_order(flow: Flow) -> Iterator[tuple[str, NodeRow]]:
    found = {row.name: row for row in flow.rows}
    for number, layer in enumerate(graph_of(flow.definition).layers, 1):
        yield from ((str(number), found[name]) for name in layer if name in found)
    yield from (("undo", row) for row in flow.rows if row.kind == "compensation")


def _cells(row: NodeRow, layer: str, begin: int, rows: Sequence[NodeRow]) -> tuple[str, ...]:
    elements = [element for element in rows if element.name.startswith(f"{row.name}[")]
    agents = sorted({ran.agent for ran in elements or [row] if ran.agent})
    after = f"after {', '.join(row.after)}" if row.after else ""
    return (
        layer,
        row.name,
        row.state.value,
        _times(row, elements, begin),
        _work(row, len(elements)),
        ", ".join(agents),
        after,
    )


def _times(row: NodeRow, elements: Sequence[NodeRow], begin: int) -> str:
    first = min(
        (element.started_at_ms for element in elements if element.started_at_ms is not None), default=row.started_at_ms
    )
    began = row.ready_at_ms if first is None else first
    if began is None or row.finished_at_ms is None:
        return ""
    return f"{(began - begin) / 1000:.1f} to {(row.finished_at_ms - begin) / 1000:.1f} s"


def _work(row: NodeRow, elements: int) -> str:
    if row.kind == "approval":
        return f"“{row.question}”"
    return f"{row.capability}, {elements} times" if elements else row.capability
