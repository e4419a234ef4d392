"""`coditect lock`: list locks, show one, and release one by force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_agent
from coditect.cli.terminal.output import Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.client.coordination.locks import LockRow
from coditect.operations.coordination import locks

app = typer.Typer(no_args_is_help=True)

MostOption = Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")]


@app.command("list")
def list_locks(
    context: typer.Context,
    most: MostOption = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the locks that are held, and who waits for each, in the order in which they are granted.

    \b
    Example: coditect lock list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await locks.list_locks(opened, most=most)
        return ShownAnswer(rows, (_table(rows),))

    present(look, output, watch=watch)


@app.command("show")
def show_lock(
    context: typer.Context,
    resource: Annotated[str, typer.Argument(metavar="RESOURCE", help="The name of what is locked.")],
    most: MostOption = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show who holds a resource under which fence, and who waits for it.

    \b
    Example: coditect lock show repo:x
    """
    rows = run_loop(locks.show_lock(connections(context), resource, most=most))
    render(output, rows, _table(rows))


@app.command("release")
def release_lock(
    context: typer.Context,
    resource: Annotated[str | None, typer.Argument(metavar="[RESOURCE]", help="What its holders lose.")] = None,
    agent: Annotated[
        str | None,
        typer.Option("--agent", help="Release all locks of this agent instead.", autocompletion=complete_agent),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Only those of this task of the agent.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; the holders are told.")] = "released by an operator",
) -> None:
    """Release locks by force, and tell their holders why.

    Only a resource that checks the fence refuses what a former holder still writes.

    \b
    Example: coditect lock release repo:x --reason "its holder hangs"
    """
    released = run_loop(locks.release_locks(connections(context), resource, agent=agent, task=task, reason=reason))
    say(f"{released} released: {reason}")


def _table(rows: Sequence[LockRow]) -> TableView:
    columns = ("resource", "state", "mode", "fence", "agent", "task", "since", "expires")
    cells = [
        (
            row.resource,
            row.state,
            row.mode,
            str(row.fence or ""),
            row.agent,
            row.task,
            instant(row.begun_ms),
            instant(row.expires_ms),
        )
        for row in rows
    ]
    return TableView(columns, cells, "Nothing is locked.")
