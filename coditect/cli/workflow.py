"""`coditect workflow`: check and draw definitions; run, show and control workflows.

Its checkpoints bring a workflow back to where it was.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, complete_workflow, connections, listed
from coditect.cli.start import FileArgument, LabelOption, app, load_file
from coditect.cli.terminal.options import ByOption, LimitOption, ShownAnswer, labels_of, only_with, presented, read_body
from coditect.cli.terminal.output import (
    Aside,
    FieldsView,
    Output,
    OutputOption,
    TableView,
    View,
    agree,
    instant,
    json_text,
    render,
    say,
)
from coditect.cli.terminal.tables import (
    attempts_table,
    history_table,
    nodes_table,
    path_table,
    workflow_fields,
    workflows_table,
)
from coditect.errors import InputError, InvalidWorkflow, NotFound
from coditect.operations import workflows
from coditect.operations.trace import task_path
from coditect.operations.workflows import WorkflowDetails, likely_mistakes, workflow_history
from coditect.workflow.definition import Definition
from coditect.workflow.graph import graph_of
from coditect.workflow.render import draw_mermaid, draw_text
from coditect.workflow.rows import CheckpointRow
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:
    from coditect.client.client import Client
    from coditect.client.workflow_run import WorkflowRun

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The workflow's id, as `workflow list` shows it.", autocompletion=complete_workflow
    ),
]


class GraphFormat(StrEnum):
    """How a graph is drawn: as text or as Mermaid."""

    TEXT = "text"
    MERMAID = "mermaid"


GraphOption = Annotated[
    GraphFormat | None, typer.Option("--graph", "-g", help="Draw it. text: layer by layer; mermaid: a flowchart.")
]


@app.command("check")
def check_workflow(
    context: typer.Context,
    file: FileArgument,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", help="The only ones there are; can be repeated. Default: any will do."),
    ] = None,
    form: GraphOption = None,
    states: Annotated[
        Path | None, typer.Option(help="With --graph: a JSON object of the nodes' states to show.")
    ] = None,
    live: Annotated[str | None, typer.Option(metavar="RUN", help="With --graph: show the states of this run.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a workflow file: fields, graph and expressions. Lists every mistake, and exits 2 when there is one.

    \b
    Example: coditect workflow check examples/release.yaml
             coditect workflow check examples/release.yaml --graph mermaid
    """
    only_with(context, ("form",), "states", "live")
    try:
        definition = load_file(file, capability)
    except InvalidWorkflow as error:
        if len(error.problems) < 2 and output is Output.TABLE:
            raise
        _write_problems(error, output)
        raise typer.Exit(error.exit_code) from None
    if form is not None:
        rows = () if live is None else run_loop(workflows.show_nodes(connections(context), live))[1]
        shown = {row.name: row.state for row in rows} if states is None else _states(states)
        typer.echo(_drawing(form, definition, shown or None))
        return
    graph = graph_of(definition)
    counts: dict[str, object] = {
        "workflow": definition.name,
        "nodes": len(graph.nodes),
        "layers": len(graph.layers),
        "edges": sum(len(node.after) for node in definition.nodes),
    }
    asides = [Aside(sentence) for sentence in likely_mistakes(definition)]
    render(output, {"valid": True, **counts, "problems": []}, FieldsView(counts), *asides)


def _drawing(form: GraphFormat, definition: Definition, states: Mapping[str, TaskState] | None) -> str:
    draw = draw_text if form is GraphFormat.TEXT else draw_mermaid
    return draw(definition, states).rstrip("\n")


@app.command("list")
@presented
async def list_workflows(
    context: typer.Context,
    state: Annotated[WorkflowState | None, typer.Option(help="Only in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    since: Annotated[str | None, typer.Option(help="Only started then or later: 2026-12-24T08:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Only started before that.")] = None,
    label: LabelOption = None,
    limit: LimitOption = 50,
) -> ShownAnswer:
    """List the workflows that the control plane keeps, the latest first.

    \b
    Example: coditect workflow list --state running --name release --since 2026-12-24T00:00Z
    """
    asked: dict[str, Any] = {"state": state, "name": name, "since": since, "until": until}
    asked |= {"labels": labels_of(label), "limit": limit}
    rows = await listed(connections(context), lambda client: client.workflows.list(**asked))
    return ShownAnswer(rows, (workflows_table(rows),))


@app.command("get")
@presented
async def get_workflow(
    context: typer.Context,
    run: RunArgument,
    node: Annotated[str | None, typer.Option(help="Only this node, with its input, and its value or failure.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show its path as a tree: which agent, how long it waited and ran.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Show what happened to it, in order of time.")] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="List its checkpoints, the earliest first.")
    ] = False,
    form: GraphOption = None,
) -> ShownAnswer:
    """Show a workflow with its nodes and attempts. Each attempt has its agent, times and error.

    Exits 4 when the control plane does not know the workflow.

    \b
    Example: coditect workflow get 01890a5d-ac96-774b-bcce-b302099a8057
    """
    whole = history + checkpoints + (form is not None)
    if trace + whole > 1 or (node and whole):
        raise InputError("These options show different things", fix="use one; --node goes with --trace alone")
    opened = connections(context)
    if trace:
        path = await task_path(opened, f"{run}:{node}" if node else run)
        return ShownAnswer(path, (path_table(path),))
    if history:
        events = await workflow_history(opened, run)
        return ShownAnswer(events, (history_table(events),))
    if checkpoints:
        async with opened.fleet() as client:
            return _checkpoints(await client.workflows.get(run).checkpoints())
    if form is not None:
        from coditect.workflow.documents.reader import definition_of

        name, rows = await workflows.show_nodes(opened, run)
        drawing = _drawing(form, definition_of(name, rows), {row.name: row.state for row in rows})
        return ShownAnswer(drawing, (drawing,))
    return _workflow(await workflows.show_workflow(opened, run, node))


def _checkpoints(rows: Sequence[CheckpointRow]) -> ShownAnswer:
    cells = [(row.name, "node" if row.node else "on request", instant(row.at_ms), row.by) for row in rows]
    return ShownAnswer(rows, (TableView(("checkpoint", "kind", "at", "by"), cells, "No node has completed yet."),))


def _workflow(found: WorkflowDetails) -> ShownAnswer:
    ending, node_input = found.ending, found.input
    result: dict[str, object] = {}
    views: list[View] = []
    if node_input is not None:
        result = {"input": node_input.value, "evaluated": node_input.evaluated, "trace": node_input.trace}
        text = json_text(node_input.value) if node_input.evaluated else "not evaluated yet"
        views = ["", FieldsView({"input": text})]
    if ending is not None:
        result |= {"value": ending.value, "failure": ending.failure}
        views += ["", FieldsView({"value": json_text(ending.value)} if ending.failure is None else ending.failure)]
    document = {**asdict(found.row), "nodes": found.nodes, "attempts": found.attempts, **result}
    tables = (*nodes_table(found.nodes), "", *attempts_table(found.attempts), *views)
    return ShownAnswer(document, (workflow_fields(found.row), "", *tables))


@app.command("cancel")
def cancel_workflow(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Why; shown with the workflow.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Undo nothing, and end an undoing under way.")] = False,
) -> None:
    """Cancel a workflow: its running tasks are asked to stop. It ends as canceled unless it completed before.

    What has completed is undone where the workflow says how.

    \b
    Example: coditect workflow cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, "cancel", lambda handle: handle.cancel(reason=reason, compensate=not keep))


@app.command("pause")
def pause_workflow(context: typer.Context, run: RunArgument) -> None:
    """Pause a workflow: no further node of it is published. Running tasks go on.

    \b
    Example: coditect workflow pause 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, "pause", lambda handle: handle.pause())


@app.command("resume")
def resume_workflow(context: typer.Context, run: RunArgument) -> None:
    """Resume a paused workflow, or run a failed one again from its failed nodes. A canceled one is refused.

    \b
    Example: coditect workflow resume 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, "resume", lambda handle: handle.resume())


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
    body = json.loads(read_body(value))
    node = ask(context, lambda client: client.workflows.get(run).signal(name, body, id=identity))
    say(f"{run}: {name} was taken by {node}." if node else f"{run}: {name} is kept until a node awaits it.")


@app.command("checkpoint")
def make_checkpoint(
    context: typer.Context,
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name: letters, digits, dots, hyphens and _.")],
) -> None:
    """Give the present position of a workflow a name. Every completed node is a checkpoint without that.

    \b
    Example: coditect workflow checkpoint 01890a5d-ac96-774b-bcce-b302099a8057 before-release
    """
    ask(context, lambda client: client.workflows.get(run).checkpoint(name))
    say(f"{run}: {name} is a checkpoint.")


@app.command("restore")
def restore_workflow(
    context: typer.Context,
    run: RunArgument,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="As `workflow get --checkpoints` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about what cannot be undone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be discarded.")] = False,
    by: ByOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a workflow back to a checkpoint: what came later is undone where declared, and runs again.

    Lists first which nodes have begun since, and asks when effects of theirs cannot be undone.

    \b
    Example: coditect workflow restore 01890a5d-ac96-774b-bcce-b302099a8057 tests --yes
    """
    plan = ask(context, lambda client: client.workflows.get(run).plan_restore(checkpoint))
    nodes = sorted(plan.nodes, key=lambda row: row.compensated)
    cells = [(row.node, row.state.value, "is undone" if row.compensated else "cannot be undone") for row in nodes]
    document = {"workflow": run, "checkpoint": checkpoint, "dry_run": dry_run, "discarded": [*map(asdict, nodes)]}
    render(output, document, TableView(("node", "state", "what it did"), cells, "No node has begun since."))
    if dry_run:
        return
    if plan.lasting:
        agree(f"What {len(plan.lasting)} of these nodes did cannot be undone. Restore all the same?", yes=yes)
    ask(context, lambda client: client.workflows.get(run).restore(plan, by=by))
    say(f"{run}: the restore to {checkpoint} was accepted, by {by}.")


def _steer(context: typer.Context, run: str, verb: str, steer: Callable[[WorkflowRun], Awaitable[None]]) -> None:
    async def steered(client: Client) -> WorkflowState:
        handle = client.workflows.get(run)
        await steer(handle)
        return await handle.state()

    say(f"{run}: {verb} was accepted, it is {ask(context, steered).value}.")


def _states(path: Path) -> dict[str, TaskState]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): TaskState(state) for name, state in document.items()}
    except OSError as error:
        raise NotFound("There is no such file to read", path=str(path), reason=error.strerror) from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        fix = f'write {{"node": "state"}}; the states are {", ".join(TaskState)}'
        raise InputError("This is no object of states", path=str(path), reason=str(error)[:200], fix=fix) from error


def _write_problems(error: InvalidWorkflow, output: Output) -> None:
    problems = [
        {"line": problem.line, "at": problem.place, "problem": problem.sentence, "fix": problem.fix}
        for problem in error.problems
    ]
    rows = [(problem.line, problem.place or None, problem.sentence, problem.fix) for problem in error.problems]
    table = TableView(("line", "at", "problem", "fix"), rows)
    render(output, {"valid": False, "problems": problems}, table, Aside(f"{len(rows)} problems."))
