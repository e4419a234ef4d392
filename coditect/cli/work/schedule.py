"""`coditect schedule`: make, list, show, pause, resume, run and delete the schedules that start workflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.client.coordination.schedules import ScheduleOptions, ScheduleRow
from coditect.model.duration import duration_text
from coditect.operations.coordination import schedules
from coditect.operations.coordination.schedules import ScheduleSteer

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@app.command("create")
def create_schedule(
    context: typer.Context,
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The workflow in YAML, or in JSON by its name.")],
    cron: Annotated[str | None, typer.Option("--cron", help="Minute hour day month weekday.")] = None,
    zone: Annotated[str | None, typer.Option("--zone", help="The time zone of --cron. Default: UTC.")] = None,
    every: Annotated[str | None, typer.Option("--every", help="A period in place of --cron, such as 30s.")] = None,
    body: Annotated[str, typer.Option("--input", "-i", help="The input: JSON, or @file, or - for stdin.")] = "{}",
    jitter: Annotated[str | None, typer.Option("--jitter", help="The longest delay of a tick, such as 1m.")] = None,
    overlap: Annotated[str, typer.Option("--overlap", help="While an earlier run goes on: allow, skip, cancel.")] = (
        "allow"
    ),
    catch_up: Annotated[str, typer.Option("--catch-up", help="Of missed ticks: skip, latest, all.")] = "latest",
    most: Annotated[int, typer.Option("--most-missed", help="How many missed ticks `all` carries out.")] = 100,
    paused: Annotated[bool, typer.Option("--paused", help="Make it, and start nothing yet.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change the schedule of this name.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a schedule that starts a workflow at each of its ticks. Give either --cron or --every.

    \b
    Example: coditect schedule create nightly nightly.yaml --cron "30 2 * * *" --zone Europe/Paris
    """
    from coditect.workflow.documents.file import load_workflow

    options: dict[str, Any] = {"cron": cron, "zone": zone, "every": every, "jitter": jitter}
    given: ScheduleOptions = {option: value for option, value in options.items() if value is not None}  # type: ignore[assignment]
    given |= {"overlap": overlap, "catch_up": catch_up, "most_missed": most, "paused": paused, "replace": replace}
    definition, value = load_workflow(file), json.loads(read_body(body))
    row = run_loop(schedules.create_schedule(connections(context), name, definition, value, given))
    _show(output, row)


@app.command("list")
def list_schedules(
    context: typer.Context,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the schedules with their next ticks.

    \b
    Example: coditect schedule list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await schedules.list_schedules(opened, most=most)
        cells = [
            (row.schedule, row.workflow, row.state, _ticks(row), instant(row.next), row.runs, row.last_run)
            for row in rows
        ]
        columns = ("schedule", "workflow", "state", "ticks", "next", "runs", "last run")
        return ShownAnswer(rows, (TableView(columns, cells, "There is no schedule."),))

    present(look, output, watch=watch)


@app.command("show")
def show_schedule(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show a schedule, its last run and its next five ticks. JSON has its workflow, too.

    \b
    Example: coditect schedule show nightly
    """
    found = run_loop(schedules.show_schedule(connections(context), name))
    shown = _fields(ScheduleRow.read(found)) | {"upcoming": "  ".join(found.get("upcoming", ()))}
    render(output, found, FieldsView(shown))


@app.command("pause")
def pause_schedule(context: typer.Context, name: NameArgument) -> None:
    """Pause a schedule: it starts nothing until it is resumed.

    \b
    Example: coditect schedule pause nightly
    """
    _steer(context, name, ScheduleSteer.PAUSE)


@app.command("resume")
def resume_schedule(context: typer.Context, name: NameArgument) -> None:
    """Resume a paused schedule with its next tick. The ticks meanwhile are not made up for.

    \b
    Example: coditect schedule resume nightly
    """
    _steer(context, name, ScheduleSteer.RESUME)


@app.command("run")
def run_schedule(context: typer.Context, name: NameArgument) -> None:
    """Start a schedule's workflow now, also while it is paused. Prints the workflow's id.

    \b
    Example: coditect schedule run nightly
    """
    workflow = run_loop(schedules.run_schedule(connections(context), name))
    if workflow is None:
        say(f"{name}: nothing was started, since an earlier run goes on.")
        raise typer.Exit(1)
    typer.echo(workflow)


@app.command("delete")
def delete_schedule(context: typer.Context, name: NameArgument) -> None:
    """Delete a schedule. The workflows that it started go on.

    \b
    Example: coditect schedule delete nightly
    """
    run_loop(schedules.delete_schedule(connections(context), name))
    say(f"{name} was deleted.")


def _steer(context: typer.Context, name: str, what: ScheduleSteer) -> None:
    row = run_loop(schedules.steer_schedule(connections(context), name, what))
    say(f"{name} is {row.state}" + (f", its next tick is {instant(row.next)}." if row.next is not None else "."))


def _show(output: Output, row: ScheduleRow) -> None:
    render(output, row, FieldsView(_fields(row)))


def _fields(row: ScheduleRow) -> dict[str, object]:
    return {
        "schedule": row.schedule,
        "workflow": row.workflow,
        "state": row.state,
        "ticks": _ticks(row),
        "next": instant(row.next),
        "last": instant(row.last),
        "last run": row.last_run,
        "runs": row.runs,
        "overlap": f"{row.overlap}, {row.skipped} skipped" if row.skipped else row.overlap,
        "catch-up": f"all, at most {row.most_missed}" if row.catch_up == "all" else row.catch_up,
        "reason": row.reason or None,
    }


def _ticks(row: ScheduleRow) -> str:
    ticks = f"every {duration_text(row.every_ms)}" if row.every_ms else f"{row.cron} ({row.zone})"
    return f"{ticks}, jitter {duration_text(row.jitter_ms)}" if row.jitter_ms else ticks
