"""`coditect workflow run`: start a workflow, watch it, and show how every node ended."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import Output, OutputOption, printable, say, write_fields, write_json
from coditect.cli.terminal.progress import LINE_SECONDS, shown_progress
from coditect.cli.terminal.waiting import checked
from coditect.cli.workflow.tables import (
    MOST_NAMED,
    WITHOUT_A_VALUE,
    first_cause,
    row_json,
    say_notes,
    write_nodes,
    write_workflow,
)
from coditect.errors import CoditectError, TaskError
from coditect.workflow.definition import Definition
from coditect.workflow.rows import NodeRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:
    from coditect.client.client import Client
    from coditect.client.workflow_run import Run

MOST_SHOWN = 10_000
"""Number of characters of a value that the text output shows; JSON has all of it."""


@dataclass(frozen=True, slots=True)
class _Order:
    definition: Definition
    input: bytes
    key: str | None
    wait: str | None


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A workflow that was accepted and is not followed."""

    id: str
    state: WorkflowState
    new: bool
    """Whether this start created the workflow; False when its key was known, so that it is the earlier one."""


@dataclass(frozen=True, slots=True)
class _Ran:
    """A workflow that was followed to its end."""

    row: WorkflowRow
    nodes: list[NodeRow]
    value: Any


def run_workflow(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A workflow in YAML, or in JSON by its name.")],
    body: Annotated[
        str, typer.Option("--input", "-i", help="The workflow's input: JSON, or @file, or - for stdin.")
    ] = "{}",
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Starts it once: with the same key, the workflow that has it.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print its id and return when it is accepted.")
    ] = False,
    wait: Annotated[
        str, typer.Option("--wait", callback=checked, help="Follow it at most so long; it goes on by itself.")
    ] = "1h",
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a workflow, show how far it is and whom it waits for, and list its nodes and its value when it has ended.

    Exits 0 when it completed, 1 when it did not, 2 when the file is no workflow, 3 when it did not end in time.

    \b
    Example: coditect workflow run examples/layered.yaml
    """
    from coditect.workflow.file import load_workflow

    order = _Order(load_workflow(file), read_body(body), key, None if detach else wait)
    say_notes(order.definition)
    ran = run_loop(_run(connections(context), order))
    if isinstance(ran, _Accepted):
        if output is Output.JSON:
            write_json({"workflow": ran.id, "state": ran.state, "new": ran.new})
        else:
            typer.echo(ran.id)
        return
    _tell(ran, output)


async def _run(opened: Connections, order: _Order) -> _Ran | _Accepted:
    async with opened.fleet() as client:
        run = await client.start(order.definition, order.input, key=order.key, progress=_uploading())
        accepted = _Accepted(run.id, WorkflowState.ACCEPTED if run.new else await run.state(), run.new)
        if order.wait is None:
            _say_known(accepted)
            return accepted
        if run.new:
            say(f"{run.id} accepted: {order.definition.name}, {len(order.definition.nodes)} nodes")
        _say_known(accepted)
        try:
            return await _followed(client, run, order.wait)
        except asyncio.CancelledError:
            say(f"It goes on. See it: coditect workflow show {run.id}; end it: coditect workflow cancel {run.id}")
            raise


def _say_known(accepted: _Accepted) -> None:
    """Print, for a key that was known, which workflow has the key and its state."""
    if not accepted.new:
        where = f"ended: {accepted.state}" if accepted.state.terminal else f"still {accepted.state}"
        say(f"already accepted as {accepted.id}, {where}")


async def _followed(client: Client, run: Run, wait: str) -> _Ran:
    with shown_progress() as show:
        questions = _Questions(client, run.id)

        def seen(row: WorkflowRow | None) -> None:
            show(row)
            questions.look(row)

        telling = asyncio.create_task(questions.tell())
        try:
            state = await run.wait(timeout=wait, seen=seen)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
    nodes = [node async for node in run.nodes()]
    value = await run.result() if state is WorkflowState.COMPLETED else None
    return _Ran(await run.overview(), nodes, value)


class _Questions:
    """The printer of the approvals that a workflow waits for: each once, with the command that answers it."""

    def __init__(self, client: Client, workflow: str) -> None:
        self._client = client
        self._workflow = workflow
        self._counts: Mapping[TaskState, int] = {}
        self._news = asyncio.Event()
        self._told: set[str] = set()

    def look(self, row: WorkflowRow | None) -> None:
        """Take a look at the workflow; ask for the approvals when one waits and any count has changed."""
        if row is not None and row.counts.get(TaskState.AWAITING_APPROVAL) and row.counts != self._counts:
            self._counts = row.counts
            self._news.set()

    async def tell(self) -> None:
        """Print new approvals until the call is canceled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async for asked in self._client.approvals():
                    if asked.workflow == self._workflow and asked.node not in self._told:
                        self._told.add(asked.node)
                        answer = f"coditect approval grant {self._workflow} {shlex.quote(asked.node)}"
                        say(printable(f"{asked.node} waits for an answer: {asked.question}\n  {answer}   (or: deny)"))
            except CoditectError:
                self._counts = {}  # the next look asks again


def _uploading() -> Callable[[int, int], None]:
    """Return a callback that prints how much of a large workflow was sent, at most a line in a second."""
    last = time.monotonic()

    def told(nodes: int, of: int) -> None:
        nonlocal last
        if nodes < of and time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            say(f"{nodes} of {of} nodes sent")

    return told


def _tell(ran: _Ran, output: Output) -> None:
    if output is Output.JSON:
        write_json({**row_json(ran.row), "value": ran.value, "nodes": [row_json(node) for node in ran.nodes]})
        if ran.row.state is not WorkflowState.COMPLETED:
            raise typer.Exit(TaskError.exit_code)
        return
    write_nodes(ran.nodes)
    typer.echo()
    write_workflow(ran.row)
    if ran.row.state is not WorkflowState.COMPLETED:
        raise _end_without_a_value(ran)
    typer.echo()
    value = json.dumps(ran.value, indent=2, ensure_ascii=False)
    write_fields({"value": value[:MOST_SHOWN]})
    if len(value) > MOST_SHOWN:
        say(f"{MOST_SHOWN} characters shown of {len(value)}; --output json has them all.")


def _end_without_a_value(ran: _Ran) -> TaskError:
    ended = [node.name for node in ran.nodes if node.state in WITHOUT_A_VALUE]
    named = (*ended[:MOST_NAMED], "…") if len(ended) > MOST_NAMED else tuple(ended)
    again = f"coditect workflow resume {ran.row.workflow}"
    return TaskError(
        f"The workflow {'failed' if ran.row.state is WorkflowState.FAILED else f'was {ran.row.state.value}'}",
        cause=first_cause(ran.nodes),
        workflow=ran.row.workflow,
        reason=ran.row.reason,
        nodes=named,
        fix=f"`coditect workflow show {ran.row.workflow}` has every attempt; mend the cause, then `{again}`",
    )
