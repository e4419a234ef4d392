"""`coditect breaker`: list the fleet's circuit breakers, show one, open one by hand, and reset one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.terminal.output import Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.client.coordination.breakers import BreakerListing
from coditect.operations.coordination import breakers

app = typer.Typer(no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The dependency's name, such as github.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; `breaker show` and `why-not` tell it.")]


@app.command("list")
def list_breakers(context: typer.Context, output: OutputOption = Output.TABLE, watch: WatchOption = False) -> None:
    """List the breakers of the fleet that ever opened, with their state and the next probe.

    \b
    Example: coditect breaker list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await breakers.list_breakers(opened)
        return ShownAnswer(rows, (_table(rows),))

    present(look, output, watch=watch)


@app.command("show")
def show_breaker(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show the state of one breaker, why and by whom it was opened or closed, and when its next probe is due.

    \b
    Example: coditect breaker show github
    """
    rows = [run_loop(breakers.show_breaker(connections(context), name))]
    render(output, rows, _table(rows))


@app.command("open")
def open_breaker(context: typer.Context, name: NameArgument, reason: ReasonOption = "opened by an operator") -> None:
    """Open a breaker in the whole fleet: no call is made, and no probe, until it is reset.

    \b
    Example: coditect breaker open github --reason "maintenance until noon"
    """
    run_loop(breakers.open_breaker(connections(context), name, reason=reason))
    say(f"{name} is open until `coditect breaker reset {name}`: {reason}")


@app.command("reset")
def reset_breaker(context: typer.Context, name: NameArgument, reason: ReasonOption = "reset by an operator") -> None:
    """Close a breaker in the whole fleet, whatever opened it; what waited for it goes on.

    \b
    Example: coditect breaker reset github
    """
    run_loop(breakers.reset_breaker(connections(context), name, reason=reason))
    say(f"{name} is closed: {reason}")


def _table(rows: Sequence[BreakerListing]) -> TableView:
    columns = ("breaker", "state", "since", "reason", "by", "next probe")
    cells = [
        (
            row.state.name,
            "open" if row.state.open else "closed",
            instant(row.state.since_ms),
            row.state.reason,
            row.state.by,
            instant(row.due_ms) if row.due_ms else ("none until it is reset" if row.state.open else ""),
        )
        for row in rows
    ]
    return TableView(columns, cells, "No breaker ever opened.")
