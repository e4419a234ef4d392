"""A dead letter as a value, read from a message in its queue, and its conversion to a fresh task.

A dead letter lies in ``dead.<capability>`` (or ``unrouted``) as the message of the former task. The agent that gave the
task up adds headers: ``x-coditect-reason``, ``-agent``, ``-attempt``, ``-error`` (JSON), ``-errors`` (JSON),
``-dead-at``. A dead letter that the broker made carries only ``x-death``, from which the reason is read.

Every header may come from a foreign publisher or from the broker, so reading never raises. A new task takes over only
the fields that the wire format knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from coditect.broker.port import Delivery
from coditect.errors import InputError, InvalidTask
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.result import Failure
from coditect.model.task import Limits, Task
from coditect.wire import routing, tasks
from coditect.wire.headers import read_history
from coditect.wire.json import loads
from coditect.wire.routing import task_target

_MAX_REDRIVES = 10_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A task that was given up, with the reason and its failed attempts."""

    id: str | None
    """The task's id; None when the publisher gave no `message_id`, and then only the other filters find the letter."""
    capability: str
    priority: Priority
    reason: str
    """Why the task was given up: the agent's reason, or the broker's such as expired; else unrouted or unknown."""
    agent_id: str | None
    attempts: int
    """The number of the last attempt; 0 when the broker dropped the task and no attempt was counted."""
    error: Failure | None
    dead_at_ms: int | None
    body: bytes
    redrives: int
    """How many times the task was redriven before."""
    errors: tuple[Mapping[str, object], ...]
    """The earlier failed attempts, oldest first."""
    queue: str


def revive(delivery: Delivery, letter: DeadLetter, *, now_ms: int, keep_limits: bool) -> Task:
    """Build a fresh task from a dead letter's message; headers that are no part of a task's wire format are left out.

    The attempts begin at 1. Limits that have passed are dropped, unless `keep_limits`.

    Raises:
        InvalidTask: when the message never was a task; an agent would only refuse the message again.
        InputError: when the capability's name is invalid.
    """
    task = tasks.read_task(delivery.message, delivery.routing_key)
    limits = task.limits
    if not keep_limits:
        limits = Limits(
            deadline_ms=_unless_past(limits.deadline_ms, now_ms),
            start_by_ms=_unless_past(limits.start_by_ms, now_ms),
            timeout_ms=limits.timeout_ms,
            max_attempts=limits.max_attempts,
        )
    return replace(
        task,
        attempt=1,
        redrive=min(task.redrive + 1, _MAX_REDRIVES),
        limits=limits,
        published_at_ms=now_ms,
        errors=history_of(letter),
    )


def _unless_past(instant_ms: int | None, now_ms: int) -> int | None:
    return instant_ms if instant_ms is not None and instant_ms > now_ms else None


def history_of(letter: DeadLetter) -> tuple[Mapping[str, object], ...]:
    """Return the failed attempts of a dead letter, including the last one, which its list of failures may lack."""
    error = letter.error
    if error is None:
        return letter.errors
    last = letter.errors[-1] if letter.errors else {}
    if last.get("attempt") == letter.attempts and last.get("message") == error.message:
        return letter.errors
    return (
        *letter.errors,
        {
            "agent": letter.agent_id,
            "attempt": letter.attempts,
            "type": error.type,
            "message": error.message,
            "reason": error.reason,
            "at_ms": letter.dead_at_ms,
        },
    )


def read_dead_letter(delivery: Delivery) -> DeadLetter:
    """Parse a delivery as a dead letter; never raises, and leaves out each field that is unreadable."""
    message = delivery.message
    headers = message.headers
    death = _death(message)
    capability, priority = _target(delivery)
    made_by_agent = isinstance(headers.get(tasks.REASON), str)
    return DeadLetter(
        id=message.message_id,
        capability=capability,
        priority=priority,
        reason=_reason(delivery, death),
        agent_id=_text(headers.get(tasks.AGENT)),
        attempts=_count(headers.get(tasks.ATTEMPT), 1 if made_by_agent else 0),
        error=_failure(headers.get(tasks.ERROR)),
        dead_at_ms=_instant_ms(headers.get(tasks.DEAD_AT) or death.get("time")),
        body=message.body,
        redrives=_count(headers.get(tasks.REDRIVE), 0),
        errors=_earlier(headers.get(tasks.ERRORS)),
        queue=delivery.queue,
    )


def _target(delivery: Delivery) -> tuple[str, Priority]:
    try:
        capability, priority = task_target(delivery.message.headers, delivery.routing_key)
    except InputError:
        return delivery.queue.removeprefix("dead."), Priority.P1
    return capability, Priority(priority)


def _reason(delivery: Delivery, death: Mapping[str, object]) -> str:
    written = _text(delivery.message.headers.get(tasks.REASON))
    if written is not None:
        return written
    if delivery.queue == routing.UNROUTED_QUEUE:
        return "unreadable_report" if routing.is_results_queue(str(death.get("queue"))) else "unrouted"
    return _text(death.get("reason")) or "unknown"


def broker_reason(message: Message) -> str | None:
    """Return why the broker dropped a task, such as expired or delivery_limit; None if the message has no `x-death`.

    The reasons are expired, delivery_limit, rejected and maxlen. A dead letter of an agent has `x-coditect-reason` and
    no `x-death`.
    """
    return _text(_death(message).get("reason"))


def _death(message: Message) -> Mapping[str, object]:
    """Return the first entry of the header `x-death` about a task queue; without one, the first entry, or {}."""
    deaths = message.headers.get("x-death")
    if not isinstance(deaths, list):
        return {}
    tables = [entry for entry in deaths if isinstance(entry, dict)]
    of_tasks = [entry for entry in tables if str(entry.get("queue")).startswith("tasks.")]
    return next(iter(of_tasks or tables), {})


def _failure(header: object) -> Failure | None:
    text = _text(header)
    if text is None:
        return None
    try:
        value = loads(text.encode())
    except InvalidTask:
        value = text
    if not isinstance(value, dict):
        return Failure(reason="", type="", message=str(value))
    return Failure.read(value)


def _earlier(header: object) -> tuple[Mapping[str, object], ...]:
    text = _text(header)
    if text is None:
        return ()
    try:
        return read_history(text)
    except InvalidTask:
        return ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object, default: int) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _instant_ms(value: object) -> int | None:
    if isinstance(value, datetime):
        return int(value.timestamp() * 1000)
    return _count(value, 0) or None
