"""`coditect handoff`: list, show and withdraw handoffs, by which agents pass tasks that they run to other agents."""

from __future__ import annotations

from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_agent, complete_workflow
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, say
from coditect.cli.terminal.user import ByOption, user_name
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.collaboration.handoffs import HandoffRow, HandoffState
from coditect.operations.coordination import handoffs
from coditect.wire.json import dumps

app = typer.Typer(no_args_is_help=True)

HandoffArgument = Annotated[
    str, typer.Argument(metavar="HANDOFF", help="The handoff's id, as `handoff list` shows it.")
]


@app.command("list")
def list_handoffs(
    context: typer.Context,
    task: Annotated[str, typer.Option("--task", help="Only those of this task.")] = "",
    workflow: Annotated[
        str, typer.Option("--workflow", help="Only those of this workflow.", autocompletion=complete_workflow)
    ] = "",
    agent: Annotated[
        str,
        typer.Option("--agent", help="Only those in which this agent takes part.", autocompletion=complete_agent),
    ] = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the handoffs of running tasks, those of the earliest workflow first.

    \b
    Example: coditect handoff list --open
    """
    opened = connections(context)
    wanted = {"task": task or None, "workflow": workflow or None, "agent": agent or None}

    async def look() -> ShownAnswer:
        rows = await handoffs.list_handoffs(opened, **wanted, open_only=open_only, most=most)
        columns = ("handoff", "state", "from", "to", "by", "declined", "begun", "reason")
        cells = [
            (
                row.handoff,
                row.state,
                row.owner,
                row.to,
                row.by,
                str(len(row.reasons)),
                instant(row.begun_ms),
                row.reason,
            )
            for row in rows
        ]
        return ShownAnswer(rows, (TableView(columns, cells, "There is no such handoff."),))

    present(look, output, watch=watch)


@app.command("show")
def show_handoff(
    context: typer.Context, handoff: HandoffArgument, output: OutputOption = Output.TABLE, watch: WatchOption = False
) -> None:
    """Show a handoff: its context, who was asked, and why each declined.

    \b
    Example: coditect handoff show 01890a5d-ac96-774b-bcce-b302099a8057:review.1
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        row = await handoffs.show_handoff(opened, handoff)
        return ShownAnswer([row], (_facts(row), _asked(row)))

    present(look, output, watch=watch)


@app.command("withdraw")
def withdraw_handoff(
    context: typer.Context,
    handoff: HandoffArgument,
    by: ByOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; the owner of the task is told.")] = "",
) -> None:
    """End an open handoff, so that the task stays with the agent that has it.

    \b
    Example: coditect handoff withdraw 01890a5d-ac96-774b-bcce-b302099a8057:review.1 --reason "let it finish"
    """
    who = by or user_name()
    row = run_loop(handoffs.withdraw_handoff(connections(context), handoff, by=who, reason=reason))
    if row.state is HandoffState.WITHDRAWN:
        say(f"{row.handoff} is withdrawn; the task stays with {row.owner}.")
    else:
        say(f"{row.handoff} had ended before: {row.state}" + (f" by {row.by}." if row.by else "."))


def _facts(row: HandoffRow) -> FieldsView:
    told = {
        "handoff": row.handoff,
        "task": row.task,
        "state": row.state.value,
        "from": f"{row.owner}, fence {row.fence}",
        "to": f"{row.to}, as {row.capability}",
        "by": row.by,
        "why": row.why,
        "reason": row.reason,
        "context": "" if row.context is None else dumps(row.context).decode(),
        "begun": instant(row.begun_ms),
        "until": instant(row.until_ms),
        "ended": instant(row.ended_ms) if row.ended_ms else "",
        "next": ", ".join(row.waiting),
    }
    return FieldsView({name: value for name, value in told.items() if value})


def _asked(row: HandoffRow) -> TableView:
    cells = [(one.agent, instant(one.at_ms), _answer(row, one.agent, one.declined)) for one in row.asked]
    return TableView(("agent", "asked", "answer"), cells, "No agent was asked.")


def _answer(row: HandoffRow, agent: str, declined: str) -> str:
    if declined:
        return f"declined: {declined}"
    return "accepted" if row.state is HandoffState.ACCEPTED and row.by == agent else "none"
