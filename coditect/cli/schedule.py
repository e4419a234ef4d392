"""`coditect schedule` and `trigger`: what starts workflows, by the clock and at events, and the services that heal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Unpack

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, connections, listed
from coditect.cli.start import ParameterOption, read_parameters
from coditect.cli.terminal.options import LimitOption, ShownAnswer, presented, read_body, takes
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.errors import InputError
from coditect.model.duration import duration_text, seconds
from coditect.operations.coordination import healing
from coditect.operations.coordination.healing import HealingRow
from coditect.workflow.patterns.pattern import make_workflow
from coditect.workflow.starters import Schedule, ScheduleOptions, Trigger, TriggerOptions

app = typer.Typer(no_args_is_help=True)

ScheduleArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@app.command("create")
@takes(ScheduleOptions)
def create_schedule(
    context: typer.Context,
    name: ScheduleArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The workflow in YAML, or in JSON by its name.")],
    body: Annotated[str, typer.Option("--input", "-i", help="The input: JSON, or @file, or - for stdin.")] = "{}",
    output: OutputOption = Output.TABLE,
    **options: Unpack[ScheduleOptions],
) -> None:
    """Make a schedule that starts a workflow at each of its ticks. Give either --cron or --every.

    \b
    Example: coditect schedule create nightly nightly.yaml --cron "30 2 * * *" --zone Europe/Paris
    """
    from coditect.workflow.documents.file import load_workflow

    definition, value = load_workflow(file), json.loads(read_body(body))

    row = ask(context, lambda client: client.schedules.create(name, definition, value, **options))
    render(output, row, FieldsView(_schedule_fields(row)))


@app.command("list")
@presented
async def list_schedules(
    context: typer.Context,
    limit: LimitOption = 100,
    heal: Annotated[
        bool, typer.Option("--heal", help="List the services that `schedule heal` watches, and what becomes of each.")
    ] = False,
) -> ShownAnswer:
    """List the schedules with their next ticks.

    \b
    Example: coditect schedule list
    """
    opened = connections(context)
    if heal:
        services = await healing.list_all(opened)
        return ShownAnswer(services, (_table(services),))
    rows = await listed(opened, lambda client: client.schedules.list(limit=limit))
    cells = [
        (row.schedule, row.workflow, row.state, _ticks(row), instant(row.next), row.runs, row.last_run) for row in rows
    ]
    columns = ("schedule", "workflow", "state", "ticks", "next", "runs", "last run")
    return ShownAnswer(rows, (TableView(columns, cells, "There is no schedule."),))


@app.command("get")
def get_schedule(context: typer.Context, name: ScheduleArgument, output: OutputOption = Output.TABLE) -> None:
    """Show a schedule, its last run and its next five ticks. JSON has its workflow, too.

    \b
    Example: coditect schedule get nightly
    """
    found = ask(context, lambda client: client.schedules.get(name))
    shown = _schedule_fields(Schedule.read(found)) | {"upcoming": "  ".join(found.get("upcoming", ()))}
    render(output, found, FieldsView(shown))


@app.command("pause")
def pause_schedule(context: typer.Context, name: ScheduleArgument) -> None:
    """Pause a schedule: it starts nothing until it is resumed.

    \b
    Example: coditect schedule pause nightly
    """
    _say_next(ask(context, lambda client: client.schedules.pause(name)))


@app.command("resume")
def resume_schedule(context: typer.Context, name: ScheduleArgument) -> None:
    """Resume a paused schedule with its next tick. The ticks meanwhile are not made up for.

    \b
    Example: coditect schedule resume nightly
    """
    _say_next(ask(context, lambda client: client.schedules.resume(name)))


@app.command("run")
def run_schedule(context: typer.Context, name: ScheduleArgument) -> None:
    """Start a schedule's workflow now, also while it is paused. Prints the workflow's id.

    \b
    Example: coditect schedule run nightly
    """
    workflow = ask(context, lambda client: client.schedules.run(name))
    if workflow is None:
        row = ask(context, lambda client: client.schedules.get(name))
        reason = "an earlier run goes on" if row["reason"] == "overlap" else row["reason"]
        say(f"{name}: nothing was started: {reason}.")
        raise typer.Exit(1)
    typer.echo(workflow)


@app.command("delete")
def delete_schedule(context: typer.Context, name: ScheduleArgument) -> None:
    """Delete a schedule. Workflows that it started go on.

    Deleting `heal-NAME` ends the watch of that service, and cancels its healing.

    \b
    Example: coditect schedule delete nightly
             coditect schedule delete heal-shop
    """
    run_loop(healing.delete_schedule(connections(context), name))
    say(f"{name} was deleted.")


def _say_next(row: Schedule) -> None:
    upcoming = f", its next tick is {instant(row.next)}" if row.next is not None else ""
    say(f"{row.schedule} is {row.state}{upcoming}.")


def _schedule_fields(row: Schedule) -> dict[str, object]:
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


def _ticks(row: Schedule) -> str:
    ticks = f"every {duration_text(row.every_ms)}" if row.every_ms else f"{row.cron} ({row.zone})"
    return f"{ticks}, jitter {duration_text(row.jitter_ms)}" if row.jitter_ms else ticks


trigger_app = typer.Typer(no_args_is_help=True)

TriggerArgument = Annotated[str, typer.Argument(metavar="NAME", help="The trigger's name.")]


@trigger_app.command("create")
@takes(TriggerOptions)
def create_trigger(
    context: typer.Context,
    name: TriggerArgument,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="The events' type or a pattern: repo.pushed, repo.*")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The workflow in YAML, or in JSON by its name.")
    ] = None,
    body: Annotated[
        str | None, typer.Option("--input", "-i", help="The input: JSON, or @file, or -. Default: the event.")
    ] = None,
    output: OutputOption = Output.TABLE,
    **options: Unpack[TriggerOptions],
) -> None:
    """Create a trigger: each event starts the workflow once. With --signal and --to it sends a signal.

    Expressions see the `event`: its type, source, id, subject, time_ms and data.

    \b
    Example: coditect trigger create pushed repo.pushed build.yaml --input '{"repo": {"$from": "event.data.repo"}}'
    """
    from coditect.workflow.documents.file import load_workflow

    definition = None if file is None else load_workflow(file)
    value = None if body is None else json.loads(read_body(body))
    row = ask(context, lambda client: client.triggers.create(name, event, definition, value, **options))
    render(output, row, FieldsView(_trigger_fields(row)))


@trigger_app.command("list")
@presented
async def list_triggers(context: typer.Context, limit: LimitOption = 100) -> ShownAnswer:
    """List the triggers with what came of their events.

    \b
    Example: coditect trigger list
    """
    rows = await listed(connections(context), lambda client: client.triggers.list(limit=limit))
    columns = ("trigger", "event", "starts", "state", "runs", "failed", "last", "reason")
    return ShownAnswer(rows, (TableView(columns, [_cells(row) for row in rows], "There is no trigger."),))


@trigger_app.command("pause")
def pause_trigger(context: typer.Context, name: TriggerArgument) -> None:
    """Pause a trigger: events pass it by until it is resumed.

    \b
    Example: coditect trigger pause pushed
    """
    say(f"{name} is {ask(context, lambda client: client.triggers.pause(name)).state}.")


@trigger_app.command("resume")
def resume_trigger(context: typer.Context, name: TriggerArgument) -> None:
    """Resume a paused trigger with the events from now on.

    \b
    Example: coditect trigger resume pushed
    """
    say(f"{name} is {ask(context, lambda client: client.triggers.resume(name)).state}.")


@trigger_app.command("delete")
def delete_trigger(context: typer.Context, name: TriggerArgument) -> None:
    """Delete a trigger. The workflows that it started go on.

    \b
    Example: coditect trigger delete pushed
    """
    ask(context, lambda client: client.triggers.delete(name))
    say(f"{name} was deleted.")


def _trigger_fields(row: Trigger) -> dict[str, object]:
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


def _cells(row: Trigger) -> tuple[object, ...]:
    counts = (row.runs, row.failed, instant(row.last), row.reason or None)
    return (row.trigger, row.event, _starts(row), row.state, *counts)


def _starts(row: Trigger) -> str:
    return str(row.workflow) if row.signal is None else f"signal {row.signal}"


_METRIC = re.compile(r"(\S+)\s+(.+?)\s*([<>])\s*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)


@app.command("heal")
def watch_service(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The service's name; not with --file.")] = None,
    folder: Annotated[str | None, typer.Option(help="It is a folder that an agent runs.")] = None,
    command: Annotated[
        str | None, typer.Option(help="It takes start, stop, status: 'systemctl UNIT', or a file.")
    ] = None,
    deployment: Annotated[str | None, typer.Option(help="It is a Deployment of Kubernetes.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Of the Deployment. Default: default.")] = None,
    kube_context: Annotated[str | None, typer.Option("--context", help="Of kubectl. Default: the present one.")] = None,
    http: Annotated[list[str] | None, typer.Option(metavar="URL", help="It answers below 400.")] = None,
    log: Annotated[
        list[str] | None, typer.Option(metavar="FILE=PATTERN", help="No new line of the file is like this.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="'URL NAME > 100': the metric is not above; or < for below."),
    ] = None,
    every: Annotated[str | None, typer.Option(help="How often it is looked at, such as 2s.")] = None,
    file: Annotated[Path | None, typer.Option(help="A YAML file of services, in place of all above.")] = None,
    parameters: ParameterOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change the service of this name.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch a service from now on, and heal it whenever it is unwell. An agent looks at it once before.

    Name what it is: --folder, --command or --deployment. The other options name what is true of it while it is well,
    and can be repeated. Paths are those of the agent's machine.

    \b
    Example: coditect schedule heal shop --folder services/shop --http http://127.0.0.1:8080/health
    """
    if (name is None) is (file is None):
        raise InputError("Name one service, or a file of services", fix="schedule heal NAME, or --file FILE")
    kind = {"folder": folder, "command": command, "deployment": deployment}
    kind |= {"namespace": namespace, "context": kube_context}
    signs = [*_signs(http or (), log or (), metric or ())]
    options: dict[str, Any] = {field: value for field, value in kind.items() if value is not None}
    options |= {"signs": signs} if signs else {}
    options |= {"every_seconds": seconds(every)} if every is not None else {}
    if file is not None and options:
        raise InputError("A file says all of its services", fix="write these options into the file", given=[*options])
    services = _read(file) if file is not None else [healing.named(str(name), options)]
    definition = make_workflow(healing.PATTERN, read_parameters(parameters))

    async def added() -> list[HealingRow]:
        opened = connections(context)
        for service in services:
            trouble = await healing.look(opened, service)
            say(f"{service['name']}: {trouble or 'it is well'}")
        if missing := await healing.unserved(opened, definition):
            say(f"No agent offers {', '.join(missing)} yet: start some, see docs/self-healing.md")
        return [await healing.add(opened, service, definition, replace=replace) for service in services]

    rows = run_loop(added())
    render(output, rows, _table(rows))


def _signs(http: Any, logs: Any, metrics: Any) -> Iterator[dict[str, Any]]:
    yield from ({"http": url} for url in http)
    for log in logs:
        path, equals, pattern = log.partition("=")
        if not equals:
            raise InputError("A log is FILE=PATTERN", given=log[:80], fix="--log services/shop/service.log=ERROR")
        yield {"log": path, "pattern": pattern}
    for metric in metrics:
        parts = _METRIC.fullmatch(metric.strip())
        if parts is None:
            fix = "--metric 'http://127.0.0.1:8080/metrics queue_depth > 100'"
            raise InputError("A metric is 'URL NAME > VALUE'", given=metric[:80], fix=fix)
        yield {"url": parts[1], "metric": parts[2], "above" if parts[3] == ">" else "below": float(parts[4])}


def _read(file: Path) -> list[healing.Service]:
    from coditect.workflow.documents.file import parse_document, read_file

    found = parse_document(read_file(file))
    if not isinstance(found, dict) or not found:
        raise InputError("A file of services has their names as keys", path=str(file), fix="write `NAME: {...}`")
    return [healing.named(str(name), fields) for name, fields in found.items()]


def _table(rows: list[HealingRow]) -> TableView:
    cells = [
        (row.name, _kind(row.service), _watched(row.service), row.state, instant(row.healed), row.last_run)
        for row in rows
    ]
    columns = ("service", "is", "signs", "state", "healed", "run")
    return TableView(columns, cells, "No service is watched.")


def _kind(service: Mapping[str, Any]) -> str:
    kind = next((kind for kind in ("folder", "command", "deployment") if kind in service), "")
    return f"{kind} {service[kind]}" if kind else ""


def _watched(service: Mapping[str, Any]) -> str:
    words = (sign.get("http") or sign.get("log") or sign.get("metric") for sign in service.get("signs", ()))
    return ", ".join(str(word) for word in words)
