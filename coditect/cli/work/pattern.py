"""`coditect pattern`: list, show, render and run patterns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, render
from coditect.cli.terminal.waiting import checked
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.cli.work.workflow import run_order
from coditect.errors import InputError
from coditect.operations.workflows import patterns
from coditect.operations.workflows.requests import WorkflowOrder

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="PATTERN", help="The pattern's name.")]
FolderOption = Annotated[
    list[Path] | None,
    typer.Option("--folder", envvar="CODITECT_PATTERNS", help="A folder with more patterns; can be repeated."),
]
ParameterOption = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", metavar="NAME=VALUE", help="A parameter: JSON, or a plain text; can be repeated."),
]


@app.callback()
def _pattern() -> None:
    """Make ordinary workflows of named patterns with parameters, such as a vote or an escalation."""


@app.command("list")
def list_patterns(folder: FolderOption = None, output: OutputOption = Output.TABLE, watch: WatchOption = False) -> None:
    """List the patterns: the packaged ones, and those of folders.

    \b
    Example: coditect pattern list
    """

    async def look() -> ShownAnswer:
        found = patterns.list_patterns(folder or ())
        cells = [(one.pattern, ", ".join(one.parameters), one.description) for one in found]
        document = [{"pattern": name, "description": text} for name, _, text in cells]
        view = TableView(("pattern", "parameters", "description"), cells, "There are no patterns.")
        return ShownAnswer(document, (view,))

    present(look, output, watch=watch)


@app.command("show")
def show_pattern(name: NameArgument, folder: FolderOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show a pattern with its parameters.

    \b
    Example: coditect pattern show majority_vote
    """
    found = patterns.show_pattern(name, folder or ())
    cells = [
        (key, one.type.value, "required" if one.required else json.dumps(one.default), one.description)
        for key, one in found.parameters.items()
    ]
    table = TableView(("parameter", "type", "default", "description"), cells, "The pattern has no parameters.")
    fields = FieldsView({"pattern": found.pattern, "description": found.description})
    render(output, found.model_dump(mode="json"), fields, "", table)


@app.command("render")
def render_pattern(name: NameArgument, given: ParameterOption = None, folder: FolderOption = None) -> None:
    """Print the workflow that a pattern becomes, as YAML.

    \b
    Example: coditect pattern render escalation --with first=text.guess --with better=text.think
    """
    made = patterns.make_workflow(name, _parameters(given), folder or ())
    from coditect.workflow.documents.file import write_yaml

    typer.echo(write_yaml(made), nl=False)


@app.command("run")
def run_pattern(
    context: typer.Context,
    name: NameArgument,
    given: ParameterOption = None,
    body: Annotated[
        str, typer.Option("--input", "-i", help="The workflow's input: JSON, or @file, or - for stdin.")
    ] = "{}",
    wait: Annotated[
        str, typer.Option("--wait", callback=checked, help="Follow it at most so long; it goes on by itself.")
    ] = "1h",
    folder: FolderOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start the workflow that a pattern becomes, and follow it to its end, as `workflow run` does.

    \b
    Example: coditect pattern run majority_vote --with 'voters=["a.vote", "b.vote"]' --input '{"question": "Why?"}'
    """
    made = patterns.make_workflow(name, _parameters(given), folder or ())
    run_order(context, WorkflowOrder(made, read_body(body), None, wait), output)


def _parameters(given: list[str] | None) -> dict[str, object]:
    """Return the options `--with NAME=VALUE` as a dict of parameters; a value that is no JSON is taken as a string."""
    found: dict[str, object] = {}
    for one in given or ():
        name, equals, text = one.partition("=")
        if not equals or name in found:
            raise InputError("A parameter is NAME=VALUE, each once", given=one[:80], fix="--with rounds=3")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found
