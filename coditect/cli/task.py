"""`coditect task`: submit work and wait for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from coditect.cli.connections import Connections, connections
from coditect.cli.output import Output, OutputOption, printable, say, write_json
from coditect.cli.why_not import why_not
from coditect.errors import (
    CoditectError,
    InvalidTask,
    TooLarge,
)
from coditect.loop import run_loop
from coditect.model.capability import Priority
from coditect.model.event import Event
from coditect.model.ids import AgentId
from coditect.model.json import loads
from coditect.model.result import ENDINGS, Outcome, Status
from coditect.model.wire import MAX_BODY_BYTES

LAST_EVENTS_SECONDS = 0.5
"""The events of an end may come a moment after the result."""

app = typer.Typer(no_args_is_help=True, help="Submit a task and wait for it, cancel one, ask why nobody takes it.")
app.command("why-not")(why_not)


@dataclass(frozen=True, slots=True)
class _Order:
    capability: str
    body: bytes
    priority: Priority
    timeout: str | None
    deadline: str | None
    pin: AgentId | None


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
    wait: Annotated[str, typer.Option("--wait", help="Wait for the result at most so long.")] = "10m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the id and return.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Submit a task, show its progress and print its value.

    Exits 0 with the value, 1 when it failed, 3 when it expired or did not end in time.

    \b
    Example: coditect task submit code.review '{"path": "src"}' --priority p0
    """
    order = _Order(capability, _read_body(body), priority, timeout, deadline, AgentId(agent) if agent else None)
    task_id, outcome = run_loop(_submit(connections(context), order, None if no_wait else wait))
    if outcome is None:
        if output is Output.JSON:
            write_json({"task_id": task_id, "status": "submitted"})
        else:
            typer.echo(task_id)
        return
    if output is Output.JSON:
        write_json(outcome_json(task_id, outcome))
        if outcome.status is not Status.COMPLETED:
            raise typer.Exit(failure_of(outcome).exit_code)
        return
    if outcome.status is not Status.COMPLETED:
        raise failure_of(outcome)
    write_json(loads(outcome.body))


@app.command("cancel")
def cancel_task(context: typer.Context, task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Ask every agent to end this task, or not to start it; best effort, remembered for ten minutes.

    \b
    Example: coditect task cancel 01890a5d-ac96-774b-bcce-b302099a8057
    """
    run_loop(_cancel(connections(context), task_id))
    say(f"{task_id}: cancel was sent to every agent.")


async def _submit(opened: Connections, order: _Order, wait: str | None) -> tuple[str, Outcome | None]:
    async with opened.client() as client, AsyncExitStack() as stack:
        listening = None if wait is None else await stack.enter_async_context(client.events("task.*"))
        handle = await client.submit(
            order.capability,
            order.body,
            priority=order.priority,
            timeout=order.timeout,
            deadline=order.deadline,
            pin=order.pin,
        )
        if wait is None or listening is None:
            return handle.task_id, None
        say(f"{handle.task_id} submitted to {order.capability}")
        watching = asyncio.create_task(_show_progress(listening, handle.task_id))
        try:
            return handle.task_id, await handle.outcome(timeout=wait)
        finally:
            await asyncio.wait([watching], timeout=LAST_EVENTS_SECONDS)
            watching.cancel()
            await asyncio.wait([watching])


async def _show_progress(events: AsyncIterator[Event], task_id: str) -> None:
    """What happens to the task, to its end; listened to from before it was submitted."""
    async for event in events:
        if event.subject == task_id:
            say(printable(f"  {event.type}  {dict(event.data) or ''}".rstrip()))
            if event.type in ENDINGS:
                return


async def _cancel(opened: Connections, task_id: str) -> None:
    async with opened.client() as client:
        await client.cancel(task_id)


def _read_body(argument: str) -> bytes:
    if argument == "-":
        body = _read_most(sys.stdin.buffer)
    elif argument.startswith("@"):
        path = Path(argument[1:])
        try:
            with path.open("rb") as file:
                body = _read_most(file)
        except OSError as error:
            raise InvalidTask("The file of the body cannot be read", path=path, reason=error.strerror) from error
    else:
        body = argument.encode()
    loads(body)
    return body


def _read_most(file: BinaryIO) -> bytes:
    body = file.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("The body is over the inline limit", limit=MAX_BODY_BYTES)
    return body


def outcome_json(task_id: str, outcome: Outcome) -> dict[str, object]:
    """How a task ended, for programs."""
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
    """The error that says how a task without a value ended; it carries the exit code."""
    from coditect.handle import task_error

    return task_error(outcome)
