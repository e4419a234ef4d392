"""`coditect thread`: list, show, open and close conversations of agents and people (threads), and add a message."""

from __future__ import annotations

from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_workflow
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.user import ByOption, user_name
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.collaboration.threads import ThreadRow
from coditect.errors import InvalidTask
from coditect.operations.coordination import threads
from coditect.operations.coordination.threads import ShownThread
from coditect.wire.json import dumps, loads

app = typer.Typer(no_args_is_help=True)

ThreadArgument = Annotated[str, typer.Argument(metavar="THREAD", help="The thread's id, as `thread list` shows it.")]
MostOption = Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")]
WorkflowOption = Annotated[
    str, typer.Option("--workflow", help="The workflow that it is bound to.", autocompletion=complete_workflow)
]
TaskOption = Annotated[str, typer.Option("--task", help="The task that it is bound to.")]


@app.command("list")
def list_threads(
    context: typer.Context,
    participant: Annotated[str, typer.Option("--participant", help="Only those of this participant.")] = "",
    task: TaskOption = "",
    workflow: WorkflowOption = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    most: MostOption = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the threads in which agents and people talk, the earliest first.

    \b
    Example: coditect thread list --participant ada --open
    """
    opened = connections(context)
    wanted = {"participant": participant or None, "task": task or None, "workflow": workflow or None}

    async def look() -> ShownAnswer:
        rows = await threads.list_threads(opened, **wanted, open_only=open_only, most=most)
        columns = ("thread", "type", "title", "participants", "messages", "last", "state")
        cells = [
            (
                row.thread,
                row.type,
                row.title,
                ", ".join(row.participants),
                str(row.last),
                instant(row.last_ms),
                "closed" if row.closed_ms else "open",
            )
            for row in rows
        ]
        return ShownAnswer(rows, (TableView(columns, cells, "There is no such thread."),))

    present(look, output, watch=watch)


@app.command("show")
def show_thread(
    context: typer.Context,
    thread: ThreadArgument,
    after: Annotated[int, typer.Option("--after", min=0, help="Only messages behind this number.")] = 0,
    most: MostOption = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """Show who takes part in a thread, how far each has read, and what was said.

    \b
    Example: coditect thread show 01890a5d-ac96-774b-bcce-b302099a8057
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        found = await threads.show_thread(opened, thread, after=after, most=most)
        return ShownAnswer([found], (_facts(found.thread), _messages(found)))

    present(look, output, watch=watch)


@app.command("open")
def open_thread(
    context: typer.Context,
    participants: Annotated[list[str], typer.Argument(metavar="PARTICIPANT...", help="Agents, capabilities, people.")],
    by: ByOption = None,
    type_: Annotated[str, typer.Option("--type", help="What kind of thread it is.")] = "discussion",
    title: Annotated[str, typer.Option("--title", help="What it is about.")] = "",
    task: TaskOption = "",
    workflow: WorkflowOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Open a thread for yourself and for others.

    \b
    Example: coditect thread open writer ada --title "Which title?"
    """
    who, bound = by or user_name(), {"task": task, "workflow": workflow}
    opened = threads.open_thread(connections(context), participants, by=who, type_=type_, title=title, **bound)
    row = run_loop(opened)
    render(output, row, _facts(row))


@app.command("say")
def say_in_thread(
    context: typer.Context,
    thread: ThreadArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; JSON with --json; @FILE or - with --json.")],
    by: ByOption = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="Only to this participant; may be repeated.")] = None,
    answers: Annotated[int | None, typer.Option("--answers", min=1, help="Answer the message of this number.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The text is JSON.")] = False,
) -> None:
    """Say something in a thread, as one of its participants, or answer a question.

    \b
    Example: coditect thread say 01890a5d-ac96-774b-bcce-b302099a8057 "The second one" --by ada --answers 1
    """
    if as_json:
        value = loads(read_body(text))
    elif text in {"", "-"}:
        raise InvalidTask("A message has a text", fix="write it in quotes; a file, or stdin, is JSON: --json")
    else:
        value = text
    who = by or user_name()
    said = threads.say(connections(context), thread, value, by=who, to=to or [], answers=answers)
    say(f"Message {run_loop(said).number} of {thread} by {who}.")


@app.command("close")
def close_thread(
    context: typer.Context,
    thread: ThreadArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the thread.")] = "",
) -> None:
    """Close a thread, so that it takes no more messages; it is kept until its retention is over.

    \b
    Example: coditect thread close 01890a5d-ac96-774b-bcce-b302099a8057 --reason "decided"
    """
    row = run_loop(threads.close_thread(connections(context), thread, reason=reason))
    say(f"{row.thread} is closed, with {row.last} messages.")


def _facts(row: ThreadRow) -> FieldsView:
    told = {
        "thread": row.thread,
        "type": row.type,
        "title": row.title,
        "participants": ", ".join(f"{one} (read {row.read.get(one, 0)} of {row.last})" for one in row.participants),
        "task": row.task,
        "workflow": row.workflow,
        "begun": instant(row.begun_ms),
        "closed": f"{instant(row.closed_ms)} {row.reason}" if row.closed_ms else "",
    }
    return FieldsView({name: value for name, value in told.items() if value})


def _messages(found: ShownThread) -> TableView:
    columns = ("number", "at", "sender", "type", "to", "message")
    cells = [
        (
            str(one.number),
            instant(one.at_ms),
            one.sender,
            one.type,
            ", ".join(one.to),
            one.value if isinstance(one.value, str) else dumps(one.value).decode(),
        )
        for one in found.messages
    ]
    return TableView(columns, cells, "Nothing was said yet.")
