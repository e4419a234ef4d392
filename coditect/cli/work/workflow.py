"""`coditect workflow`: check and draw definitions; run, show and control workflows."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.body import labels_of, read_body
from coditect.cli.terminal.output import (
    Aside,
    FieldsView,
    Output,
    OutputOption,
    TableView,
    View,
    render,
    say,
    show,
)
from coditect.cli.terminal.progress import LINE_SECONDS, Show, shown_progress
from coditect.cli.terminal.waiting import checked, going_on
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.cli.terminal.workflow_tables import (
    attempts_table,
    history_table,
    nodes_table,
    workflow_fields,
    workflows_table,
)
from coditect.cli.work import checkpoints
from coditect.cli.work.checkpoints import RunArgument
from coditect.errors import InputError, InvalidWorkflow, NotFound
from coditect.model.ids import is_uuid
from coditect.operations.connections import Connections
from coditect.operations.workflows import requests as workflows
from coditect.operations.workflows.history import workflow_history
from coditect.operations.workflows.requests import (
    AcceptedWorkflow,
    EndedWorkflow,
    Steer,
    WorkflowFilter,
    WorkflowOrder,
    likely_mistakes,
)
from coditect.workflow.definition import Definition
from coditect.workflow.graph import graph_of
from coditect.workflow.render import draw_mermaid, draw_text
from coditect.workflow.rows import ApprovalRow
from coditect.workflow.states import TaskState, WorkflowState

MOST_SHOWN = 10_000
"""The largest number of characters of a value that the text output shows; JSON shows the whole value."""

app = typer.Typer(no_args_is_help=True)
app.add_typer(checkpoints.app)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow in YAML, or in JSON by its name.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="A label of it; can be repeated.")
]


class GraphFormat(StrEnum):
    """The output format of `workflow graph`: text or Mermaid."""

    TEXT = "text"
    MERMAID = "mermaid"


@app.command("run")
def run_workflow(
    context: typer.Context,
    file: FileArgument,
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
    label: LabelOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a workflow and follow it to its end. Shows progress and open approvals, then nodes and value.

    Exits 0 when it completed, 1 when it did not, 2 when the file is no workflow, 3 when it did not end in time.

    \b
    Example: coditect workflow run examples/layered.yaml
    """
    order = WorkflowOrder(_load(file, None), read_body(body), key, None if detach else wait, labels_of(label))
    run_order(context, order, output)


def run_order(context: typer.Context, order: WorkflowOrder, output: Output) -> None:
    """Start a workflow and print its id; or, if awaited, follow it, print nodes and value, and raise if it failed."""
    _say_mistakes(order.definition)
    ran = run_loop(_run(connections(context), order))
    if isinstance(ran, AcceptedWorkflow):
        render(output, {"workflow": ran.id, "state": ran.state, "new": ran.new}, ran.id)
        return
    document = {**asdict(ran.row), "value": ran.value, "nodes": ran.nodes}
    render(output, document, *nodes_table(ran.nodes), "", workflow_fields(ran.row))
    if ran.error is not None:
        raise ran.error if output is Output.TABLE else typer.Exit(ran.error.exit_code)
    if output is Output.TABLE:
        value = _json(ran.value)
        show("", FieldsView({"value": value[:MOST_SHOWN]}))
        if len(value) > MOST_SHOWN:
            say(f"{MOST_SHOWN} characters shown of {len(value)}; --output json has them all.")


@app.command("check")
def check_workflow(
    file: FileArgument,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", help="The only ones there are; can be repeated. Default: any will do."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a workflow file: fields, graph and expressions. Lists every mistake, and exits 2 when there is one.

    \b
    Example: coditect workflow check examples/release.yaml
    """
    try:
        definition = _load(file, capability)
    except InvalidWorkflow as error:
        if len(error.problems) < 2 and output is Output.TABLE:
            raise
        _write_problems(error, output)
        raise typer.Exit(error.exit_code) from None
    graph = graph_of(definition)
    counts: dict[str, object] = {
        "workflow": definition.name,
        "nodes": len(graph.nodes),
        "layers": len(graph.layers),
        "edges": sum(len(node.after) for node in definition.nodes),
    }
    asides = [Aside(sentence) for sentence in likely_mistakes(definition)]
    render(output, {"valid": True, **counts, "problems": []}, FieldsView(counts), *asides)


@app.command("graph")
def draw_workflow(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="FILE_OR_RUN", help="A definition, or the id of one that runs.")],
    form: Annotated[
        GraphFormat, typer.Option("--format", "-f", help="text: layer by layer; mermaid: a flowchart.")
    ] = GraphFormat.TEXT,
    states: Annotated[
        Path | None, typer.Option("--states", help="A JSON object of the nodes' states, to be shown with them.")
    ] = None,
    live: Annotated[
        str | None, typer.Option("--live", metavar="RUN", help="Show the file with the states of this run.")
    ] = None,
) -> None:
    """Draw the graph of a workflow file or of a run. A run's nodes are drawn with their live states.

    \b
    Example: coditect workflow graph examples/release.yaml --format mermaid
    """
    draw = draw_text if form is GraphFormat.TEXT else draw_mermaid
    run = target if is_uuid(target) else live
    name, rows = ("", []) if run is None else run_loop(workflows.show_nodes(connections(context), run))
    now: Mapping[str, TaskState] | None = {row.name: row.state for row in rows} if run is not None else None
    from coditect.workflow.documents.reader import definition_of

    definition = definition_of(name, rows) if is_uuid(target) else _load(Path(target), None)
    typer.echo(draw(definition, now if states is None else _states(states)), nl=False)


@app.command("list")
def list_workflows(
    context: typer.Context,
    state: Annotated[WorkflowState | None, typer.Option("--state", help="Only in this state.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only of this name.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only started then or later: 2026-12-24T08:00Z.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only started before that.")] = None,
    label: LabelOption = None,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 50,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the workflows that the control plane keeps, the latest first.

    \b
    Example: coditect workflow list --state running --name release --since 2026-12-24T00:00Z
    """
    opened, wanted = connections(context), WorkflowFilter(state, name, since, until, labels_of(label))

    async def look() -> ShownAnswer:
        rows = await workflows.list_workflows(opened, wanted, most=most)
        return ShownAnswer(rows, (workflows_table(rows),))

    present(look, output, watch=watch)


@app.command("show")
def show_workflow(
    context: typer.Context,
    run: RunArgument,
    node: Annotated[
        str | None, typer.Option("--node", help="Only this node, with its input, and its value or failure.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a workflow with its nodes and attempts. Each attempt has its agent, times and error.

    \b
    Example: coditect workflow show 01890a5d-ac96-774b-bcce-b302099a8057
    """
    found = run_loop(workflows.show_workflow(connections(context), run, node))
    ending, given = found.ending, found.input
    told: dict[str, object] = {}
    views: list[View] = []
    if given is not None:
        told = {"input": given.value, "evaluated": given.evaluated, "trace": given.trace}
        views = ["", FieldsView({"input": _json(given.value) if given.evaluated else "not evaluated yet"})]
    if ending is not None:
        told |= {"value": ending.value, "failure": ending.failure}
        views += ["", FieldsView({"value": _json(ending.value)} if ending.failure is None else ending.failure)]
    document = {**asdict(found.row), "nodes": found.nodes, "attempts": found.attempts, **told}
    tables = (*nodes_table(found.nodes), "", *attempts_table(found.attempts), *views)
    render(output, document, workflow_fields(found.row), "", *tables)


@app.command("history")
def show_history(context: typer.Context, run: RunArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what happened to a workflow, in order of time: every attempt of every node. JSON is for export.

    \b
    Example: coditect workflow history 01890a5d-ac96-774b-bcce-b302099a8057 --output json
    """
    events = run_loop(workflow_history(connections(context), run))
    render(output, events, history_table(events))


@app.command("cancel")
def cancel_workflow(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown with the workflow.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Undo nothing, and end an undoing under way.")] = False,
) -> None:
    """Cancel a workflow: its running tasks are asked to stop. It ends as canceled unless it completed before.

    What has completed is undone where the workflow says how.

    \b
    Example: coditect workflow cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.CANCEL, reason, compensate=not keep)


@app.command("pause")
def pause_workflow(context: typer.Context, run: RunArgument) -> None:
    """Pause a workflow: no further node of it is published. Running tasks go on.

    \b
    Example: coditect workflow pause 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.PAUSE)


@app.command("resume")
def resume_workflow(context: typer.Context, run: RunArgument) -> None:
    """Resume a paused workflow, or run a failed one again from its failed nodes. A canceled one is refused.

    \b
    Example: coditect workflow resume 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.RESUME)


@app.command("signal")
def signal_workflow(
    context: typer.Context,
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The signal's name, as the workflow awaits it.")],
    value: Annotated[
        str, typer.Argument(metavar="[VALUE]", help="Its value: JSON, or @file, or - for stdin.")
    ] = "null",
    identity: Annotated[
        str | None, typer.Option("--id", help="Counts once: a signal with the same id changes nothing.")
    ] = None,
) -> None:
    """Send a signal to a workflow. It is kept until a node awaits it.

    \b
    Example: coditect workflow signal 01890a5d-ac96-774b-bcce-b302099a8057 paid '{"euro": 7}'
    """
    sent = workflows.signal_workflow(connections(context), run, name, json.loads(read_body(value)), identity=identity)
    node = run_loop(sent)
    say(f"{run}: {name} was taken by {node}." if node else f"{run}: {name} is kept until a node awaits it.")


def _steer(context: typer.Context, run: str, what: Steer, reason: str = "", *, compensate: bool = True) -> None:
    opened = connections(context)
    state = run_loop(workflows.steer_workflow(opened, run, what, reason=reason, compensate=compensate))
    say(f"{run}: {what.value} was accepted, it is {state.value}.")


async def _run(opened: Connections, order: WorkflowOrder) -> AcceptedWorkflow | EndedWorkflow:
    with ExitStack() as stack:
        return await workflows.run_workflow(opened, order, _Watcher(order, stack))


class _Watcher:
    """Callbacks of `workflow run` that print a workflow's progress and its open approvals."""

    def __init__(self, order: WorkflowOrder, stack: ExitStack) -> None:
        self._order = order
        self._stack = stack
        self._said_at = time.monotonic()
        self.seen: Show = lambda _: None

    def uploaded(self, nodes: int, of: int) -> None:
        """Print how many nodes of a large workflow were sent, at most once a second."""
        if nodes < of and time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            say(f"{nodes} of {of} nodes sent")

    def accepted(self, accepted: AcceptedWorkflow) -> None:
        """Print the id of a workflow if it is awaited or was accepted before; show the progress of an awaited one."""
        run, followed, definition = accepted.id, self._order.wait is not None, self._order.definition
        if not accepted.new:
            where = f"ended: {accepted.state}" if accepted.state.terminal else f"still {accepted.state}"
            say(f"already accepted as {run}, {where}")
        elif followed:
            say(f"{run} accepted: {definition.name}, {len(definition.nodes)} nodes")
        if followed:
            see = f"It goes on. See it: coditect workflow show {run}; end it: coditect workflow cancel {run}"
            self._stack.enter_context(going_on(see))
            self.seen = self._stack.enter_context(shown_progress())

    def asked(self, approval: ApprovalRow) -> None:
        """Print an open approval's question and the commands that show what it is about and answer it."""
        node = f"{approval.workflow} {shlex.quote(approval.node)}"
        say(f"{approval.node} waits for an answer: {approval.question}")
        for verb in ("show", "grant", "deny"):
            say(f"  coditect approval {verb} {node}")


def _say_mistakes(definition: Definition) -> None:
    for sentence in likely_mistakes(definition):
        say(sentence)


def _load(file: Path, capabilities: list[str] | None) -> Definition:
    from coditect.workflow.documents.file import load_workflow

    return load_workflow(file, capabilities=capabilities or None)


def _states(path: Path) -> dict[str, TaskState]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): TaskState(state) for name, state in document.items()}
    except OSError as error:
        raise NotFound("There is no such file to read", path=str(path), reason=error.strerror) from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        fix = f'write {{"node": "state"}}; the states are {", ".join(TaskState)}'
        raise InputError("This is no object of states", path=str(path), reason=str(error)[:200], fix=fix) from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _write_problems(error: InvalidWorkflow, output: Output) -> None:
    problems = [{"line": one.line, "at": one.place, "problem": one.sentence, "fix": one.fix} for one in error.problems]
    rows = [(one.line, one.place or None, one.sentence, one.fix) for one in error.problems]
    table = TableView(("line", "at", "problem", "fix"), rows)
    render(output, {"valid": False, "problems": problems}, table, Aside(f"{len(rows)} problems."))
