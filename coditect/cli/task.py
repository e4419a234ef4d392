"""`coditect task`: submit a task, wait for it, ask for it later, see its path, and its handoffs between agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, Any, Unpack

import typer

from coditect.aio.clock import SystemClock
from coditect.aio.loop import run_loop
from coditect.cli.connections import (
    ask,
    complete_agent,
    complete_capability,
    complete_task,
    complete_workflow,
    connections,
    listed,
)
from coditect.cli.terminal.failure import raised_at
from coditect.cli.terminal.options import (
    ByOption,
    LimitOption,
    ShownAnswer,
    checked,
    going_on,
    only_with,
    presented,
    read_body,
    takes,
)
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say, write_json
from coditect.cli.terminal.progress import shown_events
from coditect.cli.terminal.tables import attempts_table, nodes_table, path_table, show_why_not
from coditect.client.handle import Handle, task_error
from coditect.client.options import Options, TaskOptions, options_of_task
from coditect.collaboration.handoffs import HandoffRow, HandoffState
from coditect.errors import InputError, ResultTimeout, StreamRestarted, TaskError
from coditect.model.capability import check_capability_name
from coditect.model.ids import TaskId
from coditect.model.message import Event
from coditect.model.result import ENDINGS, Outcome, Status
from coditect.operations import tasks
from coditect.operations.connections import Connections
from coditect.operations.documents import TaskDocument
from coditect.operations.explain import TaskQuestion
from coditect.operations.locate import DEFAULT_MOST, why_not_task
from coditect.operations.tasks import ListedTask
from coditect.operations.trace import task_path
from coditect.wire.json import dumps, loads

LAST_EVENTS_SECONDS = 0.5
"""How long a task's last events may arrive after its result."""

CapabilityArgument = Annotated[
    str, typer.Argument(help="What to do, e.g. hello.greet.", autocompletion=complete_capability)
]
InputOption = Annotated[
    str | None, typer.Option("--input", "-i", metavar="INPUT|@FILE|-", help="The input, in place of the argument.")
]
KeyOption = Annotated[
    str | None, typer.Option("--idempotency-key", "-k", help="Durable, once: a repeated key returns the same task.")
]

app = typer.Typer(no_args_is_help=True)


@app.command("submit")
@takes(TaskOptions, before="wait", complete={"agent": complete_agent})
def submit_task(
    context: typer.Context,
    capability: CapabilityArgument,
    body: Annotated[
        str | None, typer.Argument(help="The input: JSON, or @file, or - for stdin.", metavar="[INPUT|@FILE|-]")
    ] = None,
    named_body: InputOption = None,
    wait: Annotated[str, typer.Option(callback=checked, help="Wait for the result at most so long.")] = "10m",
    stream: Annotated[
        bool, typer.Option("--stream", help="Print the parts of the result as they come, each on a line.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the id and return.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Durable: the control plane keeps it. Print its id and return.")
    ] = False,
    key: KeyOption = None,
    binary: Annotated[bool, typer.Option("--bytes", help="The body is bytes, such as a file, and not JSON.")] = False,
    output: OutputOption = Output.TABLE,
    **fields: Unpack[TaskOptions],
) -> None:
    """Submit a task, show its progress and print its value.

    With --detach, --idempotency-key, --delay or --at the control plane keeps it: it may run for hours, and `task get`
    and `task cancel` find it by its id. Exits 0 with the value, 1 when it failed, 3 when it expired or did not end in
    time.

    \b
    Example: coditect task submit hello.greet '"Ada"' --priority p0
    """
    if stream and (no_wait or detach):
        raise InputError("Parts are printed while the command waits", fix="--stream without --no-wait and --detach")
    options = options_of_task(fields, idempotency_key=key, stream=stream)
    value, until = _input(body, named_body, binary=binary), None if no_wait or detach else wait
    submit = _submit_durable if detach or options.kept else _submit
    task_id, outcome = run_loop(submit(connections(context), capability, value, options, until))
    if outcome is None:
        render(output, {"task_id": task_id, "status": "submitted"}, task_id)
    elif not stream or outcome.status is not Status.COMPLETED:
        direct = f"coditect dead get {task_id} --capability {capability}"
        _tell(task_id, outcome, output, whole=None if tasks.is_durable(task_id) else direct)


@app.command("list")
@presented
async def list_tasks(context: typer.Context, limit: LimitOption = 50) -> ShownAnswer:
    """List durable tasks and the direct tasks that agents run now, the latest first.

    Durable tasks are those among the latest 1,000 workflows. A direct task that waits in a queue or has ended is not
    listed, since nothing records it: `task get --why-not` looks for one by its id, and `top` shows how many wait.

    \b
    Example: coditect task list
    """
    listing = await tasks.list_tasks(connections(context), limit=limit)
    columns = ("task", "capability", "priority", "state", "durable", "agent", "attempt", "at")
    cells = [(*_listed(task), instant(task.at_ms)) for task in listing.tasks]
    return ShownAnswer(listing.tasks, (TableView(columns, cells, "No tasks."),), listing.notes)


def _listed(task: ListedTask) -> tuple[object, ...]:
    facts = (task.task_id, task.capability, task.priority, task.state, task.durable)
    return (*facts, task.agent or None, task.attempt)


@app.command("get")
def get_task(
    context: typer.Context,
    task_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `task submit` printed it.", autocompletion=complete_task)
    ],
    wait: Annotated[
        str | None, typer.Option(callback=checked, help="Wait for its end at most so long, and print its value alone.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show the path of any task, or of WORKFLOW:NODE, attempt by attempt.")
    ] = False,
    why_not: Annotated[
        bool, typer.Option("--why-not", help="Show where a direct task is, and why no agent takes it.")
    ] = False,
    capability: Annotated[
        str | None,
        typer.Option(
            "--capability", "-c", help="With --trace or --why-not: look in the queues of this capability, too."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=100_000, help="With --why-not: messages to look at in each queue.")
    ] = DEFAULT_MOST,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a durable task's state and attempts. Once it has ended, also its value or failure.

    With --wait, the exit codes are those of `task submit`.

    With --trace, show the path of a task from the ledger and from what messages carry, without a collector. A direct
    task that has completed leaves nothing to show. Exits 4 when nothing knows the task, as with --why-not.

    \b
    Example: coditect task get 01890a5d-ac96-774b-bcce-b302099a8057:task
             coditect task get 01890a5d-ac96-774b-bcce-b302099a8057:task --wait 10m
    """
    if trace + why_not + (wait is not None) > 1:
        raise InputError("These options show different things", fix="--trace, --why-not or --wait")
    only_with(context, ("why_not",), "limit")
    only_with(context, ("trace", "why_not"), "capability")
    if why_not:
        question = None if capability is None else TaskQuestion(check_capability_name(capability))
        show_why_not(run_loop(why_not_task(connections(context), task_id, question, most=limit)), output)
        return
    if trace:
        path = run_loop(task_path(connections(context), task_id, capability=capability))
        render(output, path, path_table(path))
        return
    if wait is not None:
        _tell(task_id, run_loop(_wait(connections(context), task_id, wait)), output)
        return
    task = run_loop(tasks.get_task(connections(context), task_id))
    outcome = task.outcome
    ending = {} if outcome is None else outcome_json(task_id, outcome)
    document = {"task_id": task_id, "status": task.row.state, "attempts": task.attempts} | ending
    render(output, document, *nodes_table([task.row]), "", *attempts_table(task.attempts))
    if output is Output.TABLE and outcome is not None and outcome.status is Status.COMPLETED:
        typer.echo()
        write_json(loads(outcome.body))


@app.command("cancel")
def cancel_task(context: typer.Context, task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Cancel a task: every agent is asked to stop it or not to start it. Best effort, remembered for 10 minutes.

    A durable task (its id ends in :task) is canceled by the control plane, which does not forget. Exits 4 when there is
    no such task to cancel, as far as agents and queues tell.

    \b
    Example: coditect task cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    report = run_loop(tasks.cancel_task(connections(context), task_id))
    say(f"{task_id}: cancel was {'accepted by the control plane' if report.durable else 'sent to every agent'}.")
    if report.error is not None:
        raise report.error


def _input(argument: str | None, option: str | None, *, binary: bool) -> bytes:
    if argument is not None and option is not None:
        raise InputError("The input is given twice", fix="give it as the argument or by --input, not both")
    return read_body(next((text for text in (argument, option) if text is not None), "{}"), binary=binary)


def _tell(task_id: str, outcome: Outcome, output: Output, *, whole: str | None = None) -> None:
    failed = None if outcome.status is Status.COMPLETED else task_error(outcome)
    if output is not Output.TABLE:
        render(output, outcome_json(task_id, outcome))
        if failed is not None:
            raise typer.Exit(failed.exit_code)
    elif failed is not None:
        if outcome.failure is not None and (where := raised_at(outcome.failure.traceback)):
            failed.facts |= {"where": where, "traceback": whole or f"coditect task get {task_id} --output json"}
        raise failed
    elif outcome.binary:
        typer.echo(outcome.body, nl=False)
    else:
        write_json(loads(outcome.body))


async def _submit(
    opened: Connections, capability: str, body: bytes, options: Options, wait: str | None
) -> tuple[str, Outcome | None]:
    """Publish a direct task, and return its id; with a wait, show its events from the first one on, and its outcome.

    Of a streamed result, the wait bounds the wait for each part.
    """
    async with opened.fleet() as client, AsyncExitStack() as stack:
        task_id = TaskId(SystemClock().new_id())  # known before, so that its first event is heard, too
        events = None if wait is None else await stack.enter_async_context(client.events("task.*", of=task_id))
        handle = await client.submit(capability, body, options=options, task_id=task_id)
        if wait is None or events is None:
            return handle.task_id, None
        say(f"{handle.task_id} submitted to {capability}")
        where = f"coditect task get {handle.task_id} --why-not --capability {capability}"
        end = f"coditect task cancel {handle.task_id}"
        watching = asyncio.create_task(_show(events, handle.task_id))
        try:
            with going_on(f"The task goes on. Where it is: {where}; to end it: {end}"):
                if options.stream:
                    await _print_parts(handle, wait)
                return handle.task_id, await handle.outcome(timeout=wait)
        finally:
            await asyncio.wait([watching], timeout=LAST_EVENTS_SECONDS)
            watching.cancel()
            await asyncio.wait([watching])


async def _show(events: AsyncIterator[Event], task_id: str) -> None:
    """Show a task's events up to its last one."""
    with shown_events() as show:
        async for event in events:
            if event.subject == task_id:
                show(event)
                if event.type in ENDINGS:
                    return


async def _print_parts(handle: Handle, wait: str) -> None:
    """Print each part of a streamed result; cancel the task if its parts begin again. Its failure is not raised here.

    Raises:
        StreamRestarted: when the task is executed again, after parts of it were printed.
        ResultTimeout: when no part came in time.
    """
    try:
        async for part in handle.stream(timeout=wait):
            typer.echo(dumps(part))
    except StreamRestarted:
        await handle.cancel(reason="its parts began again")
        raise
    except TaskError as error:
        if isinstance(error, ResultTimeout):
            raise


async def _submit_durable(
    opened: Connections, capability: str, body: bytes, options: Options, wait: str | None
) -> tuple[str, Outcome | None]:
    if options.pin is not None:
        say("A durable task prefers no agent; --agent is left out.")
    async with opened.fleet() as client:
        handle = await client.submit(capability, body, options=options, durable=True)
        task_id = handle.task_id
        if not handle.run.new:
            say(f"{task_id} has this key already; nothing new was submitted.")
        elif wait is not None:
            say(f"{task_id} accepted for {capability}")
        if wait is None:
            return task_id, None
        with going_on(f"The task goes on. Its value: coditect task get {task_id} --wait 10m"):
            return task_id, await handle.outcome(timeout=wait)


async def _wait(opened: Connections, task_id: str, wait: str) -> Outcome:
    with going_on(f"The task goes on. Where it is: coditect task get {task_id}"):
        async with opened.fleet() as client:
            return await client.tasks.get(task_id).outcome(timeout=wait)


def outcome_json(task_id: str, outcome: Outcome) -> dict[str, object]:
    """Return a task's outcome (status, value, failure, agent, times) as JSON values for `--output json`."""
    document = asdict(TaskDocument.of(task_id, outcome))
    del document["attempts"]  # `task get` has them beside it
    if not outcome.binary:
        del document["value_base64"]
    return document


handoff_app = typer.Typer(no_args_is_help=True, help="List, read and withdraw handoffs of running tasks.")
app.add_typer(handoff_app, name="handoff")

HandoffArgument = Annotated[
    str, typer.Argument(metavar="HANDOFF", help="The handoff's id, as `task handoff list` shows it.")
]


@handoff_app.command("list")
@presented
async def list_handoffs(
    context: typer.Context,
    task: Annotated[str, typer.Option(help="Only those of this task.")] = "",
    workflow: Annotated[str, typer.Option(help="Only those of this workflow.", autocompletion=complete_workflow)] = "",
    agent: Annotated[
        str, typer.Option(help="Only those in which this agent takes part.", autocompletion=complete_agent)
    ] = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are open.")] = False,
    limit: LimitOption = 100,
) -> ShownAnswer:
    """List the handoffs of running tasks, those of the earliest workflow first.

    \b
    Example: coditect task handoff list --open
    """
    conditions: dict[str, Any] = {"task": task or None, "workflow": workflow or None, "agent": agent or None}
    conditions |= {"open_only": open_only, "limit": limit}
    rows = await listed(connections(context), lambda client: client.handoffs.list(**conditions))
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


@handoff_app.command("get")
@presented
async def get_handoff(context: typer.Context, handoff: HandoffArgument) -> ShownAnswer:
    """Show a handoff: its context, who was asked, and why each declined.

    \b
    Example: coditect task handoff get 01890a5d-ac96-774b-bcce-b302099a8057:review.1
    """
    async with connections(context).fleet() as client:
        row = await client.handoffs.get(handoff)
    return ShownAnswer([row], (_handoff_facts(row), _asked(row)))


@handoff_app.command("withdraw")
def withdraw_handoff(
    context: typer.Context,
    handoff: HandoffArgument,
    by: ByOption = "",
    reason: Annotated[str, typer.Option(help="Why; the owner of the task is told.")] = "",
) -> None:
    """End an open handoff, so that the task stays with the agent that has it.

    \b
    Example: coditect task handoff withdraw 01890a5d-ac96-774b-bcce-b302099a8057:review.1 --reason "let it finish"
    """
    row = ask(context, lambda client: client.handoffs.withdraw(handoff, by=by, reason=reason))
    if row.state is HandoffState.WITHDRAWN:
        say(f"{row.handoff} is withdrawn; the task stays with {row.owner}.")
    else:
        say(f"{row.handoff} had ended before: {row.state}" + (f" by {row.by}." if row.by else "."))


def _handoff_facts(row: HandoffRow) -> FieldsView:
    return FieldsView(
        {
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
    )


def _asked(row: HandoffRow) -> TableView:
    cells = [(asked.agent, instant(asked.at_ms), _answer(row, asked.agent, asked.declined)) for asked in row.asked]
    return TableView(("agent", "asked", "answer"), cells, "No agent was asked.")


def _answer(row: HandoffRow, agent: str, declined: str) -> str:
    if declined:
        return f"declined: {declined}"
    return "accepted" if row.state is HandoffState.ACCEPTED and row.by == agent else "none"
