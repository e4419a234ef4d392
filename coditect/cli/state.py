"""`coditect state`: read, write and watch the shared state of a named space or of a workflow."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from coditect.aio.launch import tell_ready
from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, connections, listed
from coditect.cli.terminal.options import LimitOption, ShownAnswer, only_with, presented, read_body
from coditect.cli.terminal.output import (
    Output,
    OutputOption,
    TableView,
    instant,
    readable,
    render,
    render_next,
    say,
    write_json,
)
from coditect.client.client import Client
from coditect.collaboration.state import SharedState, StateEntry
from coditect.errors import InputError, NotFound
from coditect.operations.connections import Connections
from coditect.settings.addresses import printable
from coditect.wire.json import loads

WORKFLOW = "workflow:"
"""The prefix by which a workflow's id stands for the space of the workflow."""

app = typer.Typer(no_args_is_help=True)

SpaceArgument = Annotated[str, typer.Argument(metavar="SPACE", help="The space's name, or workflow:ID.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key of the value.")]
VersionOption = Annotated[
    int | None, typer.Option("--if-version", min=0, help="Replace only this version; 0 stands for no value.")
]


@app.command("list")
@presented
async def list_keys(
    context: typer.Context,
    space: SpaceArgument,
    prefix: Annotated[str, typer.Option(help="Only keys that begin with this text.")] = "",
    limit: LimitOption = 100,
) -> ShownAnswer:
    """List the keys of a space with their versions and writers, but without their values.

    \b
    Example: coditect state list team
    """
    opened = connections(context)
    entries = await listed(opened, lambda client: _space(client, space).entries(prefix, limit=limit))
    columns = ("key", "version", "writer", "task", "at")
    cells = [(entry.key, entry.version, entry.writer, entry.task, instant(entry.at_ms)) for entry in entries]
    return ShownAnswer(entries, (TableView(columns, cells, "No key has a value."),))


@app.command("get")
def get_value(
    context: typer.Context,
    space: SpaceArgument,
    key: KeyArgument,
    version: Annotated[
        int | None, typer.Option(min=1, help="A former version, of the latest 20 that are kept.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Print each later version, too, within a second, until Ctrl-C.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="With --watch: end after this many versions.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print a value as JSON; --output json adds its version, writer and time. Exits 4 if the key has no value.

    With --watch each version is a line, with its writer and time. Of several changes within a second, only the last one
    appears.

    \b
    Example: coditect state get team plan
    """
    only_with(context, ("watch",), "count")
    if watch and version is not None:
        raise InputError("Only the latest versions of a value are watched", fix="--watch or --version")
    if watch:
        with suppress(KeyboardInterrupt):
            run_loop(_watch(connections(context), space, key, count, output))
        return
    entry = ask(context, lambda client: _space(client, space).entry(key, version=version))
    if entry.deleted:
        raise NotFound("This key has no value", space=space, key=key, fix=f"coditect state list {space}")
    if output is Output.TABLE:
        write_json(entry.value)
    else:
        render(output, entry)


@app.command("put")
def put_value(
    context: typer.Context,
    space: SpaceArgument,
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE|@FILE|-", help="The value: JSON, or @file, or - for stdin.")],
    if_version: VersionOption = None,
) -> None:
    """Write a value, and print its version. With --if-version, exits 1 if the key has another version.

    \b
    Example: coditect state put team plan '{"goal": "ship it"}' --if-version 0
    """
    document = loads(read_body(value))
    typer.echo(ask(context, lambda client: _space(client, space).put(key, document, if_version=if_version)))


@app.command("delete")
def delete_value(
    context: typer.Context, space: SpaceArgument, key: KeyArgument, if_version: VersionOption = None
) -> None:
    """Delete a value. The key's next value continues its version numbers.

    \b
    Example: coditect state delete team plan
    """
    ask(context, lambda client: _space(client, space).delete(key, if_version=if_version))
    say(f"{key} was deleted.")


async def _watch(opened: Connections, space: str, key: str, count: int | None, output: Output) -> None:
    seen = 0
    async with opened.fleet() as client:
        tell_ready()
        async for entry in _space(client, space).watch(key):
            _write(entry, output)
            seen += 1
            if seen == count:
                return


def _write(entry: StateEntry, output: Output) -> None:
    value = "no value" if entry.deleted else json.dumps(entry.value, ensure_ascii=False)
    text = f"{readable(instant(entry.at_ms))}  version {entry.version}  {entry.writer}  {value}"
    render_next(output, entry, printable(text))


def _space(client: Client, space: str) -> SharedState:
    workflow = space.removeprefix(WORKFLOW)
    return client.state(space) if workflow == space else client.workflows.get(workflow).shared
