"""`coditect load`: a load test that compares the submitted tasks with their answers and with a log of executions."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.options import checked, going_on
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, View, render, say
from coditect.errors import InputError
from coditect.model.capability import Priority
from coditect.model.duration import seconds
from coditect.operations.connections import Connections
from coditect.operations.load import (
    LoadCounts,
    LoadEnding,
    LoadPlan,
    LoadReport,
    Utilisation,
    drive,
    read_effects,
    summarize,
)
from coditect.settings.settings import find_env_file

LOG_VARIABLE = "CODITECT_LOAD_LOG"
LOG_FILE = Path("load") / "effects.log"
TICK_SECONDS = 0.25
LINE_SECONDS = 2.0


app = typer.Typer()


@app.command("load")
def run_load(
    context: typer.Context,
    tasks: Annotated[int, typer.Option("--tasks", "-n", min=1, help="How many tasks.")] = 2000,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks in flight (closed loop).")] = 100,
    min_ms: Annotated[int, typer.Option(min=0, help="Shortest task.")] = 50,
    max_ms: Annotated[int, typer.Option(min=0, help="Longest task.")] = 200,
    rate: Annotated[float | None, typer.Option(min=0.01, help="Open loop: submit so many per second instead.")] = None,
    capability: Annotated[str, typer.Option("--capability", "-c", help='Takes {"milliseconds": n}.')] = "load.work",
    priority: Annotated[Priority, typer.Option("--priority", "-p", help="Of every task.")] = Priority.P1,
    wait: Annotated[str, typer.Option(callback=checked, help="No answer after so long: the task hangs.")] = "5m",
    effect_log: Annotated[
        Path | None, typer.Option(help=f"Default: {LOG_VARIABLE}, or beside what `up` wrote.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put the fleet under load; report throughput, latency, utilisation, failures, lost tasks, repeated executions.

    Exits 1 when a task was refused, failed, hung or lost. A repeated execution is no failure: it is listed.

    \b
    Example: coditect load --tasks 2000 --concurrency 100 --min-ms 50 --max-ms 200
    """
    if min_ms > max_ms:
        raise InputError("--min-ms is above --max-ms", min_ms=min_ms, max_ms=max_ms)
    load = LoadPlan(tasks, concurrency, rate, min_ms, max_ms, capability, priority, seconds(wait))
    opened = connections(context)
    log = effect_log or default_log(opened.environ, Path.cwd())
    if effect_log is not None and not log.is_file():
        fix = "name the file of the agents' CODITECT_LOAD_LOG; before their first task, make it: touch FILE"
        raise InputError("There is no such effect log", path=log, fix=fix)
    counts, utilisation = LoadCounts(), Utilisation()
    run_loop(_run(opened, load, counts, utilisation))
    effects = read_effects(log, counts.answers)
    report = summarize(counts.answers, effects, utilisation=utilisation.share)
    render(output, {"ok": report.ok, **asdict(report)}, *_views(report, log))
    if not report.ok:
        raise typer.Exit(1)


def default_log(environ: Mapping[str, str], folder: Path) -> Path:
    """Return the path of a load test's log of executions: from the environment, else beside `coditect up`'s files."""
    named = environ.get(LOG_VARIABLE)
    if named:
        return Path(named)
    env_file = find_env_file(folder)
    return (env_file.parent if env_file else folder / ".coditect") / LOG_FILE


async def _run(opened: Connections, load: LoadPlan, counts: LoadCounts, utilisation: Utilisation) -> None:
    see = f"coditect capability get {load.capability} --why-not; coditect agent list"
    async with (
        opened.fleet() as client,
        opened.registry() as registry,
        _beside(utilisation.watch(registry, load.capability, lambda: counts.in_flight)),
        _beside(_bar(load, counts) if sys.stderr.isatty() else _lines(load, counts)),
    ):
        with going_on(f"What was submitted goes on, unattended. To see it: {see}"):
            await drive(client, load, counts)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run an endless coroutine, such as a display of the progress, while the block runs."""
    running = asyncio.create_task(work)
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def _lines(load: LoadPlan, counts: LoadCounts) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    while True:
        await asyncio.sleep(LINE_SECONDS)
        say(f"{loop.time() - started:6.1f} s  {_state(load, counts)}")


async def _bar(load: LoadPlan, counts: LoadCounts) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        bar = progress.add_task(_state(load, counts), total=load.tasks)
        try:
            while True:
                await asyncio.sleep(TICK_SECONDS)
                progress.update(bar, completed=len(counts.answers), description=_state(load, counts), refresh=True)
        finally:
            progress.update(bar, completed=len(counts.answers), description=_state(load, counts), refresh=True)


def _state(load: LoadPlan, counts: LoadCounts) -> str:
    answered = len(counts.answers)
    return f"{answered}/{load.tasks} ended, {counts.in_flight} in flight, {counts.failed} without a value"


def _views(report: LoadReport, log: Path) -> Iterator[View]:
    latency = report.latency_ms
    yield FieldsView(
        {
            "submitted": sum(report.endings.values()),
            **{ending.value: count for ending, count in report.endings.items()},
            "lost": len(report.lost) if report.effects_compared else f"not known: there is no effect log {log}",
            "duplicates": sum(len(lines) - 1 for lines in report.repeated.values()),
            "elapsed": f"{report.elapsed_seconds:.1f} s",
            "throughput": f"{report.throughput_per_second:.1f} tasks/s",
            "utilisation": "not known: no work was queued for two seconds"
            if report.utilisation is None
            else f"{report.utilisation:.1%} of the slots while work was queued",
            "latency": f"p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms, p99 {latency.p99:.0f} ms, "
            f"max {latency.highest:.0f} ms",
        }
    )
    yield TableView(("agent", "answers"), list(report.agents.items()))
    yield TableView(("problem", "tasks"), list(report.problems.items()))
    for ending, ids in ((LoadEnding.HUNG.value, report.hung), ("lost", report.lost)):
        yield TableView((ending,), [(task_id,) for task_id in ids])
    rows = [
        (task_id, [f"{line.agent_id} (pid {line.pid}, attempt {line.attempt})" for line in lines])
        for task_id, lines in report.repeated.items()
    ]
    yield TableView(("repeated", "executions"), rows)
