"""The publishing of retries and dead letters, which precedes the acknowledgement of a delivery, and what fails in it.

The owner of a workflow task decides about its failure. A task without an owner is tried again through the retry-delay
queues while attempts are left, and then becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from coditect.agent.execution import Execution, Suspicion
from coditect.agent.handler import AttemptOutcome, asked_seconds
from coditect.agent.pool import RemoteError
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Backoff
from coditect.broker.port import Broker, Delivery
from coditect.errors import InputError, NotFound, Retryable, Unroutable
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Failure, Status, ask_error
from coditect.model.retry import Retry, delay_not_before_ms, retry_delay_ms
from coditect.model.task import Task
from coditect.telemetry.tracing import SKIPPED, Span, Tracing, begin_publish
from coditect.wire import routing, tasks
from coditect.wire.headers import foreign_headers, history_header
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

SETTLE_PUBLISH_SECONDS = 60.0
SENT_BACK_SECONDS = 1.0
_MAX_ERROR_BYTES = 16 * 1024


@dataclass(slots=True)
class Settler:
    """The publisher of retries and dead letters of one agent process."""

    broker: Broker
    events: Events
    clock: Clock
    tracing: Tracing
    agent_id: AgentId

    async def retry(self, execution: Execution, ended: AttemptOutcome, failure: Failure, policy: Retry) -> int:
        """Send the task through a retry-delay queue as the next attempt, and return the delay in milliseconds.

        A delay that the handler asked for is never cut: the queue is the first that is not shorter.
        """
        task, headers = execution.task, execution.delivery.message.headers
        if (asked := asked_seconds(ended.error)) is not None:
            delay_ms = delay_not_before_ms(asked)
        else:
            delay_ms = retry_delay_ms(policy.delay_seconds(task.attempt, self.clock.chance()), self.clock.chance())
        errors = (*task.errors, self.history(execution, failure))
        following = replace(task, attempt=task.attempt + 1, errors=errors)
        await self.send_to(routing.retry_exchange(delay_ms), following, headers)
        self.events.emit(
            "task.retrying",
            subject=task.id or "",
            capability=task.capability,
            attempt=task.attempt,
            delay_ms=delay_ms,
            error=failure.message,
        )
        return delay_ms

    async def send_back(self, task: Task, headers: Mapping[str, Any], within_seconds: float) -> None:
        """Send a task back unchanged, also after a broken-off attempt, through a retry-delay queue.

        `within_seconds` is the mean delay.
        """
        delay_seconds = 2 * within_seconds * self.clock.chance()
        exchange = routing.retry_exchange(retry_delay_ms(delay_seconds, self.clock.chance()))
        await self.send_to(exchange, task, headers)

    async def send_to(self, exchange: str, task: Task, headers: Mapping[str, Any]) -> None:
        """Send a task to an exchange that leads to its capability's queue, as it is, with its publisher's headers."""
        message = tasks.task_message(task)
        await self.broker.publish(
            replace(message, headers={**foreign_headers(headers), **message.headers}),
            exchange=exchange,
            routing_key=routing.key_of(task),
            timeout_seconds=SETTLE_PUBLISH_SECONDS,
        )

    async def bury(self, message: Message, routing_key: str, failure: Failure, *, attempt: int, errors: Any) -> None:
        """Publish a message as a dead letter: the same body, and the failure in its headers.

        Raises:
            Unroutable: when the capability has no dead-letter queue.
            CoditectError: any other error of `Broker.publish`.
        """
        headers = foreign_headers(message.headers, keep_ours=True)
        headers |= {
            tasks.REASON: failure.reason,
            tasks.AGENT: self.agent_id,
            tasks.ATTEMPT: attempt,
            tasks.ERROR: _error_header(failure),
            tasks.DEAD_AT: self.clock.now_ms(),
        }
        if errors:
            headers[tasks.ERRORS] = history_header(tuple(errors))
        await self.broker.publish(
            replace(message, headers=headers, expiration_ms=None),
            exchange=routing.DEAD,
            routing_key=routing_key,
            timeout_seconds=SETTLE_PUBLISH_SECONDS,
        )
        self.events.emit("task.dead", subject=message.message_id or "", reason=failure.reason, routing_key=routing_key)

    def begin_burial(self, execution: Execution) -> Span | None:
        """Begin the span of a task's dead letter, as a child of its attempt's span; None for an untraced task."""
        if execution.span is None:
            return None
        routing_key = routing.key_of(execution.task)
        return begin_publish(
            self.tracing, execution.task, exchange=routing.DEAD, routing_key=routing_key, parent=execution.span
        )

    def history(self, execution: Execution, failure: Failure) -> dict[str, Any]:
        """Return the record of one failed attempt, with agent, error and time, that travels with the task."""
        record: dict[str, Any] = {
            "agent": self.agent_id,
            "attempt": execution.task.attempt,
            "type": failure.type,
            "message": failure.message[:500],
            "reason": failure.reason,
            "at_ms": self.clock.now_ms(),
        }
        if execution.suspicion is Suspicion.RECORDED:
            record["isolated"] = True
        span = execution.span
        return record if span is None or span is SKIPPED else record | {"trace": span.traceparent}


def _error_header(failure: Failure) -> str:
    text = dumps(failure.as_json())
    if len(text) > _MAX_ERROR_BYTES:
        short = {name: value[-500:] if isinstance(value, str) else value for name, value in failure.as_json().items()}
        text = dumps(short)
    return text.decode()


def worth_another(error: BaseException | None, policy: Retry) -> bool:
    """Tell whether the retry policy allows another attempt after this error, whatever the number of attempts.

    A `RemoteError` carries the answer from the worker process.
    """
    if issubclass(type(error), RemoteError):  # `isinstance` would ask the error itself for its class
        return cast("RemoteError", error).retryable
    return policy.allows(Exception() if error is None else error)


# Pacing of an agent that fails tasks for reasons of its own: it slows down, reports that, and recovers by itself.
#
# An agent without file descriptors, memory or disk space fails tasks at once that its neighbours could do, and so
# attracts more of them. So the agent keeps the slot of each task that failed for such a reason for a while, longer each
# time and one slot after the other: soon it takes no more than one task in a while, until one succeeds. An error that a
# handler makes of its input is no such reason, so a stream of bad tasks slows no agent.

OWN_TROUBLE_PAUSES = Backoff(0.2, 5.0)
MOST_CAUSES = 10
MOST_OWN_FAULT_RETURNS = 2
MOST_FAILED = 10_000
"""Number of tasks with failed attempts that are remembered, the latest ones."""
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Pacing:
    """The slowdown of an agent process that fails tasks for want of memory, disk space or file descriptors."""

    def __init__(self) -> None:
        self._failures = 0
        self._kept = 0
        self._failed: OrderedDict[TaskId, None] = OrderedDict()
        self.trouble = ""
        """The reason of its own for which the process fails tasks; empty when there is none."""

    def for_another(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether to return a task, at most twice, for another agent, since it failed in this process before.

        A task in this agent's own queue is not returned, because no other agent would get it.
        """
        is_shared = routing.queue_key(delivery.queue) is not None
        return is_shared and task.id in self._failed and delivery.delivery_count < MOST_OWN_FAULT_RETURNS

    def pause_seconds(self, task: Task, ended: AttemptOutcome) -> float:
        """Record an attempt's end, and return the seconds it keeps its slot: 0 unless memory, disk or files ran out.

        The pause slows the agent down; after it, call `over`.
        """
        if ended.status is Status.FAILED and task.id is not None:
            self._failed[task.id] = None
            if len(self._failed) > MOST_FAILED:
                self._failed.popitem(last=False)
        reason = own_reason(ended.error) if ended.status is Status.FAILED else ""
        if not reason:
            if ended.status is Status.COMPLETED and self.trouble:
                log.warning("Tasks succeed here again", extra={"reason": self.trouble, "failures": self._failures})
                self._failures, self.trouble = 0, ""
            return 0.0
        if not self.trouble:
            fix = "see to what this process lacks (ulimit -n, memory, disk); until a task succeeds it takes few"
            log.error("Tasks fail here for a reason of this agent's own", extra={"reason": reason, "fix": fix})
        self.trouble = reason
        self._failures += 1
        self._kept += 1
        return self._kept * OWN_TROUBLE_PAUSES.pause(self._failures)

    def over(self) -> None:
        """Record that a slot is free again after the pause that slowed the agent down."""
        self._kept -= 1


def own_reason(error: BaseException | None) -> str:
    """Return what the process ran out of, such as memory, if that caused an error; "" for any other error."""
    return ask_error(lambda: _own_reason(error), otherwise="")


def _own_reason(error: BaseException | None) -> str:
    for _ in range(MOST_CAUSES):
        if error is None:
            break
        if issubclass(type(error), MemoryError):
            return "out of memory"
        if issubclass(type(error), OSError) and (trouble := cast("OSError", error)).errno in _OWN:
            return f"{errno.errorcode[trouble.errno]}: {trouble.strerror}"
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return ""


# The return of unsettled deliveries to their queues: after pauses that double, and at last as dead letters.

RETURNS = Backoff(1.0, 60.0)
"""The pauses before a delivery that could not be settled goes back."""
MOST_RETURNS = 8
"""Number of returns after which a delivery that still cannot be settled becomes a dead letter."""


async def settle_or_return(
    work: Coroutine[Any, Any, None], delivery: Delivery, in_hand: Execution | None = None
) -> None:
    """Await a coroutine that settles a delivery; if that fails, return the delivery or make it a dead letter.

    `in_hand` is the execution whose deliveries all have that end.
    """
    try:
        await work
    except Exception as error:  # noqa: BLE001 - told in full
        await not_settled(error, delivery, in_hand)
    except BaseException:
        (in_hand or delivery).requeue()
        raise


async def not_settled(error: Exception, delivery: Delivery, in_hand: Execution | None = None) -> None:
    """Settle a delivery after an error: return it, mostly after a growing pause, or make a dead letter of it.

    The pause doubles with each return; the first return after trouble of the broker has none.
    Trouble of the broker as a whole makes no dead letters; an error of the message itself makes one at once.
    """
    deliveries, returns = in_hand or delivery, delivery.delivery_count
    facts = {"task_id": delivery.message.message_id, "reason": str(error), "returns": returns}
    wrong_itself = isinstance(error, InputError) and not isinstance(error, NotFound | Unroutable)
    if isinstance(error, Retryable):
        log.warning("A task could not be settled; it is returned", extra=facts)
    elif wrong_itself:
        log.warning("A task cannot be settled; it becomes a dead letter", extra=facts)
        deliveries.reject()
        return
    elif returns >= MOST_RETURNS:
        log.error("A task cannot be settled; it becomes a dead letter", exc_info=error, extra=facts)
        deliveries.reject()
        return
    else:
        log.error("The runtime failed on a delivery; it is returned", exc_info=error, extra=facts)
    try:
        if returns or not isinstance(error, Retryable):
            await asyncio.sleep(pause_seconds(delivery))
    finally:
        deliveries.requeue()


def pause_seconds(delivery: Delivery) -> float:
    """Return the pause before a delivery goes back: doubled each time, up to a minute; 0 s if the delivery is lost."""
    return 0.0 if delivery.lost else RETURNS.pause(delivery.delivery_count + 1)
