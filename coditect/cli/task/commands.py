"""`coditect task`: submit a task and wait for its result; ask for a durable task later, by its id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated

import typer

from coditect.aio.clock import SystemClock
from coditect.aio.loop import run_loop
from coditect.cli.connections import Connections, connections
from coditect.cli.task.why_not import whereabouts, why_not
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.failure import raised_at
from coditect.cli.terminal.output import Output, OutputOption, say, write_json
from coditect.cli.terminal.progress import shown_events
from coditect.cli.terminal.waiting import checked, going_on
from coditect.cli.workflow.tables import row_json, write_attempts, write_nodes
from coditect.errors import CoditectError, NotFound
from coditect.model.capability import Priority
from coditect.model.event import Event
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import ENDINGS, Outcome, Status
from coditect.operations.sightings import SightingPlace, task_verdict
from coditect.wire.json import loads
from coditect.workflow.rows import AttemptRow, NodeRow

LAST_EVENTS_SECONDS = 0.5
"""How long the events of an end may come after the result."""

DURABLE = ":task"
"""The end of a durable task's id."""

DurableArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Of a durable task, as `task submit --detach` printed it.")
]

app = typer.Typer(no_args_is_help=True)
app.command("why-not")(why_not)


@dataclass(frozen=True, slots=True)
class _Order:
    capability: str
    body: bytes
    priority: Priority
    timeout: str | None
    deadline: str | None
    pin: AgentId | None
    key: str | None = None


@app.command("submit")
def submit_task(
    context: typer.Context,
    capability: Annotated[str, typer.Argument(help="What to do, e.g. code.review.")],
    body: Annotated[str, typer.Argument(help="JSON, or @file, or - for stdin.", metavar="[BODY|@FILE|-]")] = "{}",
    priority: Annotated[Priority, typer.Option("--priority", "-p", help="p0 is urgent, p2 is bulk.")] = Priority.P1,
    timeout: Annotated[str | None, typer.Option("--timeout", help="Longest run of one attempt, e.g. 5m.")] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", help="Not wanted any more after so long from now, e.g. 1h.")
    ] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Prefer this agent, by its id.")] = None,
    wait: Annotated[str, typer.Option("--wait", callback=checked, help="Wait for the result at most so long.")] = "10m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the id and return.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Durable: the control plane keeps it. Print its id and return.")
    ] = False,
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="Durable, once: with the same key, the task that has it.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a task, show its progress and print its value.

    With --detach or --key the control plane keeps it: it may run for hours, and `task get`, `task wait` and
    `task cancel` find it by its id. Exits 0 with the value, 1 when it failed, 3 when it expired or did not end in time.

    \b
    Example: coditect task submit code.review '{"path": "src"}' --priority p0
    """
    order = _Order(capability, read_body(body), priority, timeout, deadline, AgentId(agent) if agent else None, key)
    until = None if no_wait or detach else wait
    work = _submit_durable if detach or key is not None else _submit
    task_id, outcome = run_loop(work(connections(context), order, until))
    if outcome is not None:
        whole = None if task_id.endswith(DURABLE) else f"coditect dead show {task_id} --capability {capability}"
        _tell(task_id, outcome, output, whole=whole)
    elif output is Output.JSON:
        write_json({"task_id": task_id, "status": "submitted"})
    else:
        typer.echo(task_id)


@app.command("get")
def get_task(context: typer.Context, task_id: DurableArgument, output: OutputOption = Output.TABLE) -> None:
    """Say where a durable task is, with every attempt; its value or failure when it has ended.

    \b
    Example: coditect task get 01890a5d-ac96-774b-bcce-b302099a8057:task
    """
    node, attempts, outcome = run_loop(_get(connections(context), task_id))
    if output is Output.JSON:
        told = {} if outcome is None else outcome_json(task_id, outcome)
        write_json({"task_id": task_id, "status": node.state, "attempts": [row_json(one) for one in attempts]} | told)
        return
    write_nodes([node])
    typer.echo()
    write_attempts(attempts)
    if outcome is not None and outcome.status is Status.COMPLETED:
        typer.echo()
        write_json(loads(outcome.body))


@app.command("wait")
def wait_for_task(
    context: typer.Context,
    task_id: DurableArgument,
    wait: Annotated[str, typer.Option("--wait", callback=checked, help="At most so long.")] = "10m",
    output: OutputOption = Output.TABLE,
) -> None:
    """Wait for a durable task and print its value; exits as `task submit` does.

    \b
    Example: coditect task wait 01890a5d-ac96-774b-bcce-b302099a8057:task
    """
    _tell(task_id, run_loop(_wait(connections(context), task_id, wait)), output)


def _tell(task_id: str, outcome: Outcome, output: Output, *, whole: str | None = None) -> None:
    if output is Output.JSON:
        write_json(outcome_json(task_id, outcome))
        if outcome.status is not Status.COMPLETED:
            raise typer.Exit(failure_of(outcome).exit_code)
        return
    if outcome.status is not Status.COMPLETED:
        failed = failure_of(outcome)
        if outcome.failure is not None and (where := raised_at(outcome.failure.traceback)):
            failed.facts |= {"where": where, "traceback": whole or f"coditect task wait {task_id} --output json"}
        raise failed
    write_json(loads(outcome.body))


@app.command("cancel")
def cancel_task(context: typer.Context, task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Ask every agent to end this task, or not to start it; best effort, remembered for ten minutes.

    A durable task (its id ends in :task) is canceled by the control plane, which does not forget. Exits 4 when there is
    no such task to cancel, as far as agents and queues tell.

    \b
    Example: coditect task cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    opened = connections(context)
    durable = task_id.endswith(DURABLE)
    seen = None if durable else run_loop(whereabouts(opened, task_id))
    run_loop(_cancel(opened, task_id))
    say(f"{task_id}: cancel was {'accepted by the control plane' if durable else 'sent to every agent'}.")
    if seen is not None and (
        seen.best is None
        or seen.best.place not in (SightingPlace.WORKING, SightingPlace.WAITING, SightingPlace.RETRYING)
    ):
        told = task_verdict(task_id, seen, None, named=True)
        raise NotFound("No such task waits or runs", task_id=task_id, seen=told.sentence, fix=told.fix)


async def _submit(opened: Connections, order: _Order, wait: str | None) -> tuple[str, Outcome | None]:
    async with opened.client() as client, AsyncExitStack() as stack:
        task_id = TaskId(SystemClock().new_id())  # known before, so that its first event is heard, too
        event_stream = None if wait is None else await stack.enter_async_context(client.events("task.*", of=task_id))
        handle = await client.submit(
            order.capability,
            order.body,
            priority=order.priority,
            timeout=order.timeout,
            deadline=order.deadline,
            pin=order.pin,
            task_id=task_id,
        )
        if wait is None or event_stream is None:
            return handle.task_id, None
        say(f"{handle.task_id} submitted to {order.capability}")
        watching = asyncio.create_task(_show_progress(event_stream, handle.task_id))
        where = f"coditect task why-not {handle.task_id} --capability {order.capability}"
        try:
            with going_on(f"The task goes on. Where it is: {where}; to end it: coditect task cancel {handle.task_id}"):
                return handle.task_id, await handle.outcome(timeout=wait)
        finally:
            await asyncio.wait([watching], timeout=LAST_EVENTS_SECONDS)
            watching.cancel()
            await asyncio.wait([watching])


async def _show_progress(events: AsyncIterator[Event], task_id: str) -> None:
    """Show the events of a task, to its end; the stream was opened before the task was submitted."""
    with shown_events() as show:
        async for event in events:
            if event.subject == task_id:
                show(event)
                if event.type in ENDINGS:
                    return


async def _submit_durable(opened: Connections, order: _Order, wait: str | None) -> tuple[str, Outcome | None]:
    from coditect.client.options import Options

    options = Options(
        priority=order.priority, timeout=order.timeout, deadline=order.deadline, idempotency_key=order.key
    )
    if order.pin is not None:
        say("A durable task prefers no agent; --agent is left out.")
    async with opened.fleet() as client:
        handle = await client.submit_durable(order.capability, order.body, options=options)
        if not handle.run.new:
            say(f"{handle.task_id} has this key already; nothing new was submitted.")
        elif wait is not None:
            say(f"{handle.task_id} accepted for {order.capability}")
        if wait is None:
            return handle.task_id, None
        with going_on(f"The task goes on. Its value: coditect task wait {handle.task_id}"):
            return handle.task_id, await handle.outcome(timeout=wait)


async def _get(opened: Connections, task_id: str) -> tuple[NodeRow, list[AttemptRow], Outcome | None]:
    async with opened.fleet() as client:
        handle = client.task(task_id)
        node = await handle.row()
        attempts = [row async for row in handle.run.attempts()]
        return node, attempts, await handle.outcome() if node.state.terminal else None


async def _wait(opened: Connections, task_id: str, wait: str) -> Outcome:
    async with opened.fleet() as client:
        with going_on(f"The task goes on. Where it is: coditect task get {task_id}"):
            return await client.task(task_id).outcome(timeout=wait)


async def _cancel(opened: Connections, task_id: str) -> None:
    async with opened.client() as client:
        await client.cancel(task_id)


def outcome_json(task_id: str, outcome: Outcome) -> dict[str, object]:
    """Return the outcome of a task as JSON values, for programs."""
    completed = outcome.status is Status.COMPLETED
    return {
        "task_id": task_id,
        "status": outcome.status.value,
        "value": loads(outcome.body) if completed else None,
        "failure": outcome.failure.as_json() if outcome.failure else None,
        "agent": outcome.agent_id,
        "attempt": outcome.attempt,
        "started_at_ms": outcome.started_at_ms,
        "finished_at_ms": outcome.finished_at_ms,
    }


def failure_of(outcome: Outcome) -> CoditectError:
    """Return the error for a task without a value; the error carries the exit code."""
    from coditect.client.handle import task_error

    return task_error(outcome)
