"""`coditect workflow`: definitions of workflows, checked and drawn. Running them is not there yet."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coditect.cli.output import Output, OutputOption, say, write_fields, write_json, write_table
from coditect.errors import InputError, InvalidWorkflow, NotFound
from coditect.model.workflow.definition import Definition
from coditect.model.workflow.drawing import draw_mermaid, draw_text
from coditect.model.workflow.graph import graph_of
from coditect.model.workflow.states import TaskState

app = typer.Typer(no_args_is_help=True, help="Check and draw workflows. Running them is not there yet.")

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow in YAML, or in JSON by its name.")]


class Format(StrEnum):
    """How a graph is drawn."""

    TEXT = "text"
    MERMAID = "mermaid"


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


@app.command("graph")
def draw_workflow(
    file: FileArgument,
    form: Annotated[
        Format, typer.Option("--format", "-f", help="text: layer by layer; mermaid: a flowchart.")
    ] = Format.TEXT,
    states: Annotated[
        Path | None, typer.Option("--states", help="A JSON object of the nodes' states, to be shown with them.")
    ] = None,
) -> None:
    """Draw a definition's graph.

    \b
    Example: coditect workflow graph examples/release.yaml --format mermaid
    """
    definition = _load(file, None)
    draw = draw_text if form is Format.TEXT else draw_mermaid
    typer.echo(draw(definition, None if states is None else _states(states)), nl=False)


def _load(file: Path, capabilities: list[str] | None) -> Definition:
    from coditect.workflow_file import load_workflow

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
