"""`coditect autonomy`: the share of finished workflows and tasks that needed no person, and what needed one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.waiting import checked
from coditect.client.coordination.audit import AutonomyReport, FinishedCounts, NeededPerson
from coditect.model.duration import seconds
from coditect.operations.coordination import approvals

app = typer.Typer()
ALL = "all workflows"


@app.command("autonomy")
def show_autonomy(
    context: typer.Context,
    last: Annotated[str, typer.Option("--last", callback=checked, help="The period that ends now, such as 7d.")] = "1d",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show which share of workflows and tasks finished with no action of a person, and what needed a person and why.

    Whole hours are counted. Direct tasks are not: nothing is kept of them.

    \b
    Example: coditect autonomy --last 7d
    """
    until_ms = time.time_ns() // 1_000_000
    since_ms = until_ms - round(1000 * seconds(last))
    found = run_loop(approvals.report_autonomy(connections(context), since_ms=since_ms, until_ms=until_ms))
    render(output, document(found), *tables(found))
    if output is Output.TABLE and not found.needed_is_whole:
        say("What needed a person is of the latest 5,000 decisions only.")


def document(found: AutonomyReport) -> dict[str, object]:
    """Return an autonomy report as JSON values, with the rates of workflows and of each capability."""
    told = asdict(found)
    told["workflows"]["autonomy"] = found.workflows.autonomy
    for name, counts in found.capabilities.items():
        told["capabilities"][name]["autonomy"] = counts.autonomy
    return told


def tables(found: AutonomyReport) -> tuple[TableView, TableView]:
    """Return an autonomy report as two tables: the rates, and what needed a person."""
    rows = [(ALL, found.workflows), *found.capabilities.items()]
    return _rates(rows), _needed(found.needed)


def _rates(rows: Sequence[tuple[str, FinishedCounts]]) -> TableView:
    columns = ("what", "autonomy", "finished", "completed", "by hand")
    cells = [
        (name, "-" if of.autonomy is None else f"{of.autonomy:.1%}", of.finished, of.completed, of.by_hand)
        for name, of in rows
    ]
    return TableView(columns, cells)


def _needed(rows: Sequence[NeededPerson]) -> TableView:
    columns = ("needed a person", "times", "capability", "rule", "last at", "workflow", "node", "by", "why")
    cells = [
        (one.decision, one.count, one.capability, one.rule, instant(one.at_ms), one.workflow, one.node, one.by, one.why)
        for one in rows
    ]
    return TableView(columns, cells, "Nothing needed a person.")
