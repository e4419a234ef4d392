"""`coditect trigger`: create, list, pause, resume and delete the triggers that start workflows at events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.client.coordination.triggers import TriggerOptions, TriggerRow
from coditect.operations.coordination import triggers

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The trigger's name.")]


@app.command("add", hidden=True)
@app.command("create")
def create_trigger(
    context: typer.Context,
    name: NameArgument,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The events' type or a pattern: repo.pushed, repo.*")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The workflow in YAML, or in JSON by its name.")
    ] = None,
    body: Annotated[
        str | None, typer.Option("--input", "-i", help="The input: JSON, or @file, or -. Default: the event.")
    ] = None,
    when: Annotated[str | None, typer.Option("--when", help="An expression that the event must fulfil.")] = None,
    signal: Annotated[str | None, typer.Option("--signal", help="Send this signal, and start nothing.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="The expression for the id of the signal's workflow.")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Create it, and start nothing yet.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a trigger: each event starts the workflow once. With --signal and --to it sends a signal.

    Expressions see the `event`: its type, source, id, subject, time_ms and data.

    \b
    Example: coditect trigger create pushed repo.pushed build.yaml --input '{"repo": {"$from": "event.data.repo"}}'
    """
    from coditect.workflow.documents.file import load_workflow

    options: TriggerOptions = {"paused": paused}
    if when is not None:
        options["when"] = when
    if signal is not None:
        options["signal"] = signal
    if to is not None:
        options["to"] = to
    definition, value = None if file is None else load_workflow(file), None if body is None else read_body(body)
    given = None if value is None else json.loads(value)
    creating = triggers.create_trigger(
        connections(context), name, event, definition=definition, value=given, options=options
    )
    row = run_loop(creating)
    render(output, row, FieldsView(_fields(row)))


@app.command("list")
def list_triggers(
    context: typer.Context,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the triggers with what came of their events.

    \b
    Example: coditect trigger list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await triggers.list_triggers(opened, most=most)
        columns = ("trigger", "event", "starts", "state", "runs", "failed", "last", "reason")
        return ShownAnswer(rows, (TableView(columns, [_cells(row) for row in rows], "There is no trigger."),))

    present(look, output, watch=watch)


@app.command("pause")
def pause_trigger(context: typer.Context, name: NameArgument) -> None:
    """Pause a trigger: events pass it by until it is resumed.

    \b
    Example: coditect trigger pause pushed
    """
    say(f"{name} is {run_loop(triggers.steer_trigger(connections(context), name, paused=True)).state}.")


@app.command("resume")
def resume_trigger(context: typer.Context, name: NameArgument) -> None:
    """Resume a paused trigger with the events from now on.

    \b
    Example: coditect trigger resume pushed
    """
    say(f"{name} is {run_loop(triggers.steer_trigger(connections(context), name, paused=False)).state}.")


@app.command("remove", hidden=True)
@app.command("delete")
def delete_trigger(context: typer.Context, name: NameArgument) -> None:
    """Delete a trigger. The workflows that it started go on.

    \b
    Example: coditect trigger delete pushed
    """
    run_loop(triggers.delete_trigger(connections(context), name))
    say(f"{name} was deleted.")


def _fields(row: TriggerRow) -> dict[str, object]:
    return {
        "trigger": row.trigger,
        "event": row.event,
        "when": row.when,
        "starts": _starts(row),
        "state": row.state,
        "runs": row.runs,
        "failed": row.failed,
        "last": instant(row.last),
        "last run": row.last_run,
        "reason": row.reason or None,
    }


def _cells(row: TriggerRow) -> tuple[object, ...]:
    counts = (row.runs, row.failed, instant(row.last), row.reason or None)
    return (row.trigger, row.event, _starts(row), row.state, *counts)


def _starts(row: TriggerRow) -> str:
    return str(row.workflow) if row.signal is None else f"signal {row.signal}"
