"""`coditect workflow`: check and draw definitions; run, show and control workflows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import Connections, connections
from coditect.cli.terminal.output import Output, OutputOption, say, write_fields, write_json, write_table
from coditect.cli.workflow.run import run_workflow
from coditect.cli.workflow.tables import (
    row_json,
    say_notes,
    write_attempts,
    write_nodes,
    write_workflow,
    write_workflows,
)
from coditect.errors import InputError, InvalidWorkflow, NotFound
from coditect.model.ids import is_uuid
from coditect.workflow.definition import Definition
from coditect.workflow.graph import graph_of
from coditect.workflow.render import draw_mermaid, draw_text
from coditect.workflow.rows import AttemptRow, NodeRow, WorkflowRow, definition_of
from coditect.workflow.states import TaskState, WorkflowState

if TYPE_CHECKING:
    from coditect.client.workflow_run import Ending

app = typer.Typer(no_args_is_help=True)
app.command("run")(run_workflow)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow in YAML, or in JSON by its name.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The workflow's id, as `workflow list` shows it.")]


class GraphFormat(StrEnum):
    """The format of a drawn graph."""

    TEXT = "text"
    MERMAID = "mermaid"


class Steer(StrEnum):
    """An action on a workflow: cancel, pause or resume."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"


@app.command("check")
def check_workflow(
    file: FileArgument,
    capability: Annotated[
        list[str] | None,
        typer.Option("--capability", "-c", help="The only ones there are; can be repeated. Default: any will do."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a definition: fields, graph, expressions. Lists everything that is wrong and exits 2 then.

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
    if output is Output.JSON:
        write_json({"valid": True, **counts, "problems": []})
    else:
        write_fields(counts)
        say_notes(definition)


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
    """Draw a graph: of a file, with states where some are named, or of a run with its live states.

    \b
    Example: coditect workflow graph examples/release.yaml --format mermaid
    """
    draw = draw_text if form is GraphFormat.TEXT else draw_mermaid
    run = target if is_uuid(target) else live
    name, rows = ("", []) if run is None else run_loop(_nodes(connections(context), run))
    now: Mapping[str, TaskState] | None = {row.name: row.state for row in rows} if run is not None else None
    definition = definition_of(name, rows) if is_uuid(target) else _load(Path(target), None)
    typer.echo(draw(definition, now if states is None else _states(states)), nl=False)


@app.command("list")
def list_workflows(
    context: typer.Context,
    state: Annotated[WorkflowState | None, typer.Option("--state", help="Only in this state.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the workflows that the control plane has, the latest first.

    \b
    Example: coditect workflow list --state running
    """
    rows = run_loop(_workflows(connections(context), state, most))
    if output is Output.JSON:
        write_json([row_json(row) for row in rows])
    else:
        write_workflows(rows)


@app.command("show")
def show_workflow(
    context: typer.Context,
    run: RunArgument,
    node: Annotated[str | None, typer.Option("--node", help="Only this node, with its value or failure.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a workflow: its nodes, and every attempt with its agent, times and error.

    \b
    Example: coditect workflow show 01890a5d-ac96-774b-bcce-b302099a8057
    """
    row, nodes, attempts, ending = run_loop(_whole(connections(context), run, node))
    if output is Output.JSON:
        told = {} if ending is None else {"value": ending.value, "failure": ending.failure}
        rows = {"nodes": [row_json(one) for one in nodes], "attempts": [row_json(one) for one in attempts]}
        write_json(row_json(row) | rows | told)
        return
    write_workflow(row)
    typer.echo()
    write_nodes(nodes)
    typer.echo()
    write_attempts(attempts)
    if ending is not None:
        typer.echo()
        write_fields({"value": _json(ending.value)} if ending.failure is None else dict(ending.failure))


@app.command("cancel")
def cancel_workflow(
    context: typer.Context,
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; shown with the workflow.")] = "",
) -> None:
    """End a workflow: nothing new begins, what runs is asked to stop. It ends as canceled unless it completed before.

    \b
    Example: coditect workflow cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.CANCEL, reason)


@app.command("pause")
def pause_workflow(context: typer.Context, run: RunArgument) -> None:
    """Publish nothing new of a workflow; what runs goes on.

    \b
    Example: coditect workflow pause 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.PAUSE)


@app.command("resume")
def resume_workflow(context: typer.Context, run: RunArgument) -> None:
    """Go on with a paused workflow, or run one that failed again from its first failed nodes.

    \b
    Example: coditect workflow resume 01890a5d-ac96-774b-bcce-b302099a8057
    """
    _steer(context, run, Steer.RESUME)


def _steer(context: typer.Context, run: str, what: Steer, reason: str = "") -> None:
    state = run_loop(_steered(connections(context), run, what, reason))
    say(f"{run}: {what.value} was accepted, it is {state.value}.")


async def _steered(opened: Connections, workflow: str, what: Steer, reason: str) -> WorkflowState:
    async with opened.fleet() as client:
        run = client.run(workflow)
        match what:
            case Steer.CANCEL:
                await run.cancel(reason=reason)
            case Steer.PAUSE:
                await run.pause()
            case Steer.RESUME:
                await run.resume()
        return await run.state()


async def _workflows(opened: Connections, state: WorkflowState | None, most: int) -> list[WorkflowRow]:
    async with opened.fleet() as client:
        return [row async for row in client.runs(state=state, most=most)]


async def _nodes(opened: Connections, workflow: str) -> tuple[str, list[NodeRow]]:
    """Return the workflow's name, and its nodes."""
    async with opened.fleet() as client:
        run = client.run(workflow)
        return (await run.overview()).name, [row async for row in run.nodes()]


async def _whole(
    opened: Connections, workflow: str, node: str | None
) -> tuple[WorkflowRow, list[NodeRow], list[AttemptRow], Ending | None]:
    """Return the workflow, its nodes or the named one, their attempts, and the named node's end if it has ended."""
    async with opened.fleet() as client:
        run = client.run(workflow)
        overview = await run.overview()
        ending = None if node is None else await run.look(node)
        nodes = [row async for row in run.nodes() if node in (None, row.name)]
        attempts = [row async for row in run.attempts(node)]
        return overview, nodes, attempts, ending if ending is not None and ending.state.terminal else None


def _load(file: Path, capabilities: list[str] | None) -> Definition:
    from coditect.workflow.file import load_workflow

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
    if output is Output.JSON:
        problems = [
            {"line": one.line, "at": one.place, "problem": one.sentence, "fix": one.fix} for one in error.problems
        ]
        write_json({"valid": False, "problems": problems})
        return
    rows = [(one.line, one.place or None, one.sentence, one.fix) for one in error.problems]
    write_table(("line", "at", "problem", "fix"), rows)
    say(f"{len(rows)} problems.")
