"""`coditect trace`: the path of one task or workflow as a tree, without a collector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import Output, OutputOption, TableView, instant, render
from coditect.operations.trace import Hop, task_path

WIDEST_REASON = 60

app = typer.Typer(no_args_is_help=True)


@app.command("trace")
def show_path(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TASK", help="The id of a task, a workflow, or WORKFLOW:NODE.")],
    capability: Annotated[
        str | None, typer.Option("--capability", "-c", help="Of a direct task that no agent offers any more.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the path of a task or workflow: every node and attempt, which agent, how long it waited and ran.

    From the ledger and from what messages carry, without a collector. A direct task that has completed leaves nothing
    to show. Exits 4 when nothing knows the task.

    \b
    Example: coditect trace 01890a5d-ac96-774b-bcce-b302099a8057
    """
    path = run_loop(task_path(connections(context), target, capability=capability))
    columns = ("step", "state", "agent", "at", "waited", "ran", "why")
    render(output, path, TableView(columns, list(_rows(path))))


def _rows(hop: Hop, stem: str = "", branch: str = "") -> Iterator[tuple[object, ...]]:
    """Yield a table row for a step of a task's or workflow's path, and then for each step below it, drawn as a tree."""
    reason = hop.reason if len(hop.reason) <= WIDEST_REASON else f"{hop.reason[: WIDEST_REASON - 1]}…"
    at = instant(hop.began_ms if hop.began_ms is not None else hop.ended_ms)
    step = f"{branch}{hop.kind} {hop.name}".rstrip()
    yield step, hop.state, hop.agent or None, at, _seconds(hop.waited_ms), _seconds(hop.ran_ms), reason or None
    for number, one in enumerate(hop.below, 1):
        last = number == len(hop.below)
        yield from _rows(one, stem + ("   " if last else "│  "), stem + ("└─ " if last else "├─ "))


def _seconds(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else f"{milliseconds / 1000:.3f} s"
