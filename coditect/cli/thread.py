"""`coditect thread`: what agents and people say to each other."""

from __future__ import annotations

from typing import Annotated, Unpack

import typer

from coditect.cli.connections import ask, complete_workflow, connections, listed
from coditect.cli.terminal.options import ByOption, LimitOption, ShownAnswer, presented, read_body, takes
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.client.client import Client
from coditect.collaboration.threads import ThreadOptions
from coditect.errors import InvalidTask
from coditect.model.thread import ThreadRow
from coditect.operations.coordination import threads
from coditect.operations.coordination.threads import ShownThread
from coditect.wire.json import dumps, loads

app = typer.Typer(no_args_is_help=True)

ThreadArgument = Annotated[str, typer.Argument(metavar="THREAD", help="The thread's id, as `thread list` shows it.")]


@app.command("list")
@presented
async def list_threads(
    context: typer.Context,
    participant: Annotated[str, typer.Option(help="Only those of this participant.")] = "",
    task: Annotated[str, typer.Option(help="Only those of this task.")] = "",
    workflow: Annotated[str, typer.Option(help="Only those of this workflow.", autocompletion=complete_workflow)] = "",
    ticket: Annotated[str, typer.Option(help="Only those of this ticket of another system.")] = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: LimitOption = 100,
) -> ShownAnswer:
    """List the threads in which agents and people talk, the earliest first.

    \b
    Example: coditect thread list --participant ada --open
    """
    conditions = {"participant": participant or None, "task": task or None}
    conditions |= {"workflow": workflow or None, "ticket": ticket or None}
    rows = await listed(
        connections(context), lambda client: client.threads.list(**conditions, open_only=open_only, limit=limit)
    )
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


@app.command("get")
@presented
async def get_thread(
    context: typer.Context,
    thread: ThreadArgument,
    after: Annotated[int, typer.Option(min=0, help="Only messages behind this number.")] = 0,
    limit: LimitOption = 100,
) -> ShownAnswer:
    """Show who takes part in a thread, how far each has read, and what was said.

    \b
    Example: coditect thread get 01890a5d-ac96-774b-bcce-b302099a8057
    """
    found = await threads.get_thread(connections(context), thread, after=after, limit=limit)
    return ShownAnswer([found], (_thread_facts(found.thread), _messages(found)))


@app.command("open")
@takes(ThreadOptions, complete={"workflow": complete_workflow})
def open_thread(
    context: typer.Context,
    participants: Annotated[list[str], typer.Argument(metavar="PARTICIPANT...", help="Agents, capabilities, people.")],
    by: ByOption = "",
    output: OutputOption = Output.TABLE,
    **options: Unpack[ThreadOptions],
) -> None:
    """Open a thread for yourself and for others.

    \b
    Example: coditect thread open writer ada --title "Which title?"
    """

    async def begin(client: Client) -> ThreadRow:
        return await (await client.threads.open(*participants, by=by, **options)).show()

    row = ask(context, begin)
    render(output, row, _thread_facts(row))


@app.command("say")
def say_in_thread(
    context: typer.Context,
    thread: ThreadArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; JSON with --json; @FILE or - with --json.")],
    by: ByOption = "",
    to: Annotated[list[str] | None, typer.Option(help="Only to this participant; may be repeated.")] = None,
    answers: Annotated[int | None, typer.Option(min=1, help="Answer the message of this number.")] = None,
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

    async def tell(client: Client) -> int:
        found = client.threads.get(thread, by=by)
        if answers is None:
            return await found.say(value, to=to or [])
        return await found.answer(await found.message(answers), value)

    say(f"Message {ask(context, tell)} of {thread} by {by}.")


@app.command("close")
def close_thread(
    context: typer.Context,
    thread: ThreadArgument,
    reason: Annotated[str, typer.Option(help="Why; kept with the thread.")] = "",
) -> None:
    """Close a thread, so that it takes no more messages; it is kept until its retention is over.

    \b
    Example: coditect thread close 01890a5d-ac96-774b-bcce-b302099a8057 --reason "decided"
    """

    async def close(client: Client) -> ThreadRow:
        found = client.threads.get(thread)
        await found.close(reason)
        return await found.show()

    row = ask(context, close)
    say(f"{row.thread} is closed, with {row.last} messages.")


def _thread_facts(row: ThreadRow) -> FieldsView:
    return FieldsView(
        {
            "thread": row.thread,
            "type": row.type,
            "title": row.title,
            "participants": ", ".join(
                f"{name} (read {row.read.get(name, 0)} of {row.last})" for name in row.participants
            ),
            "task": row.task,
            "workflow": row.workflow,
            "ticket": row.ticket,
            "begun": instant(row.begun_ms),
            "closed": f"{instant(row.closed_ms)} {row.reason}" if row.closed_ms else "",
        }
    )


def _messages(found: ShownThread) -> TableView:
    columns = ("number", "at", "sender", "type", "to", "message")
    cells = [
        (
            str(message.number),
            instant(message.at_ms),
            message.sender,
            message.type,
            ", ".join(message.to),
            message.value if isinstance(message.value, str) else dumps(message.value).decode(),
        )
        for message in found.messages
    ]
    return TableView(columns, cells, "Nothing was said yet.")
