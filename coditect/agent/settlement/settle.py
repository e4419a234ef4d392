"""The publishing of replies, retries and dead letters, which precedes the acknowledgement of a delivery.

The owner of a workflow task decides about its failure. A task without an owner is tried again through the retry-delay
queues while attempts are left, and then becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandlerEnd, asked_seconds
from coditect.agent.processes.pool import RemoteError
from coditect.agent.quarantine import Suspicion
from coditect.aio.clock import Clock
from coditect.broker.port import Broker, Promise
from coditect.errors import CoditectError, NotFound, Overloaded, Retryable, SetupError
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome
from coditect.model.retry import Retry, delay_not_before_ms, retry_delay_ms
from coditect.model.task import Task
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import REPLIES_UNCLAIMED
from coditect.telemetry.tracing.messaging import begin_publish
from coditect.telemetry.tracing.port import NO_TRACING, SKIPPED, Span, Tracing
from coditect.wire import routing, tasks
from coditect.wire.addresses.return_addresses import ReturnAddresses
from coditect.wire.headers.foreign import foreign_headers
from coditect.wire.headers.history import history_header
from coditect.wire.json import dumps

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 60.0
SENT_BACK_SECONDS = 1.0
FULL_REPLIES_SECONDS = 2.0
FULL_PAUSE_SECONDS = 0.1
MOST_FULL = 1_000
_MAX_ERROR_BYTES = 16 * 1024


class Settler:
    """The publisher of replies, retries and dead letters of one agent process."""

    def __init__(
        self,
        broker: Broker,
        events: Events,
        clock: Clock,
        metrics: Metrics,
        *,
        agent_id: AgentId,
        addresses: ReturnAddresses,
    ) -> None:
        self._broker = broker
        self._addresses = addresses
        self._events = events
        self.clock = clock
        self.tracing: Tracing = NO_TRACING
        self._agent_id = agent_id
        self.unclaimed = metrics.counter(REPLIES_UNCLAIMED)
        self.full_since: OrderedDict[routing.Address, float] = OrderedDict()
        """The receivers whose reply queue is full, each with the event loop's time at which that was first seen."""

    def post_reply(self, task: Task, outcome: Outcome, promise: Promise) -> None:
        """Post a task's reply without waiting; its error or confirm (at once without an address) goes to `promise`.

        `reply` must handle an error of the post.
        """
        address = self._address(task)
        if address is None:
            promise.set_result(None)
            return
        self._broker.post(
            tasks.result_message(outcome, capability=task.capability),
            promise,
            exchange=address.exchange,
            routing_key=address.routing_key,
            timeout_seconds=PUBLISH_SECONDS,
            wait_when_full=False,
        )

    def taken(self, task: Task) -> None:
        """Note that the broker took a reply to a task, so that the task's reply queue is not full any more."""
        if (address := self._addresses.find(task.reply_to)) is not None:
            self.full_since.pop(address, None)

    async def reply(self, task: Task, outcome: Outcome, failed: BaseException | None = None) -> None:
        """Send a reply to the task's return address, if any, and await the confirm; drop one that has no receiver.

        The outcome must carry the task's own correlation id. A reply that no queue takes, or that the broker's
        permissions forbid, has no receiver: it is counted, published as an event, and dropped. A reply whose exchange
        is missing waits until the exchange exists again. `failed` is the error of the first try, if there was one.

        Raises:
            Retryable: when the broker as a whole cannot take the reply.
            SetupError: when the broker refuses the publish for another reason than the address.
            Exception: any error of the publish that is not a CoditectError.
        """
        address = self._address(task)
        if address is None:
            return
        message = tasks.result_message(outcome, capability=task.capability)
        while True:
            try:
                if failed is not None:
                    error, failed = failed, None
                    raise error
                await self._broker.publish(
                    message,
                    exchange=address.exchange,
                    routing_key=address.routing_key,
                    timeout_seconds=PUBLISH_SECONDS,
                    wait_when_full=False,
                )
            except CoditectError as error:
                if self._may_try_again(task, address, error):
                    await asyncio.sleep(FULL_PAUSE_SECONDS)
                    continue
            else:
                self.full_since.pop(address, None)
            return

    def _may_try_again(self, task: Task, address: routing.Address, error: CoditectError) -> bool:
        """Tell whether to send a failed reply again; if not, drop it, or raise an error that the broker caused.

        Raises:
            CoditectError: the given error, when the trouble is the broker's and not the receiver's.
        """
        match error:
            case Overloaded() if not self._broker.blocked:  # an alarm of the broker says nothing about the receiver
                if self._may_wait(address):
                    return True
            case NotFound() if address.exchange:
                log.error("An answer waits for the exchange of the replies", extra={"reason": str(error)})
                return True  # `publish` has waited already; it is there again when somebody makes it
            case SetupError() if self._addresses.refused(address, error):
                log.warning("Only what `coditect.replies` takes is answered", extra={"reason": str(error)})
            case Retryable() | SetupError():
                raise error
        self._unclaimed(task, error)
        return False

    def _address(self, task: Task) -> routing.Address | None:
        """Return the return address of a task; None when it has none, or the address may not be answered."""
        address = self._addresses.find(task.reply_to)
        if address is None or address.exchange or self._addresses.reachable(address):
            return address
        self._unclaimed(task, SetupError("The broker's permissions do not allow it", entity=address.routing_key))
        return None

    def _may_wait(self, address: routing.Address) -> bool:
        """Tell whether a reply may wait for space in its queue: in the first 2 s after the queue was found full.

        The time is FULL_REPLIES_SECONDS, for all replies to the queue together. The deliveries that wait for the
        queue take places that all tasks need.
        """
        now = asyncio.get_running_loop().time()
        since = self.full_since.setdefault(address, now)
        if len(self.full_since) > MOST_FULL:
            self.full_since.popitem(last=False)
        return now - since < FULL_REPLIES_SECONDS

    def _unclaimed(self, task: Task, error: CoditectError) -> None:
        self.unclaimed.value += 1
        self._events.emit("task.unclaimed", subject=task.id or "", reply_to=task.reply_to)
        log.info("A reply has no receiver any more", extra={"task_id": task.id, "reason": str(error)})

    async def retry(self, execution: Execution, ended: HandlerEnd, failure: Failure, policy: Retry) -> int:
        """Send the task through a retry-delay queue as the next attempt, and return the delay in milliseconds.

        A delay that the handler asked for is never cut: the queue is the first that is not shorter.
        """
        task, headers = execution.task, execution.delivery.message.headers
        if (asked := asked_seconds(ended.error)) is not None:
            delay_ms = delay_not_before_ms(asked)
        else:
            delay_ms = retry_delay_ms(policy.delay_seconds(task.attempt, self.clock.chance()), self.clock.chance())
        errors = (*task.errors, self.history(execution, failure))
        await self._round(replace(task, attempt=task.attempt + 1, errors=errors), headers, delay_ms)
        self._events.emit(
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
        await self._round(task, headers, retry_delay_ms(delay_seconds, self.clock.chance()))

    async def forward(self, task: Task, headers: Mapping[str, Any]) -> None:
        """Send a task to the queue of its capability, unchanged."""
        message = tasks.task_message(task)
        await self._broker.publish(
            replace(message, headers={**foreign_headers(headers), **message.headers}),
            exchange=routing.SUBMIT,
            routing_key=routing.key_of(task),
            timeout_seconds=PUBLISH_SECONDS,
        )

    async def _round(self, task: Task, headers: Mapping[str, Any], delay_ms: int) -> None:
        message = tasks.task_message(task)
        await self._broker.publish(
            replace(message, headers={**foreign_headers(headers), **message.headers}),
            exchange=routing.retry_exchange(delay_ms),
            routing_key=routing.key_of(task),
            timeout_seconds=PUBLISH_SECONDS,
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
            tasks.AGENT: self._agent_id,
            tasks.ATTEMPT: attempt,
            tasks.ERROR: _error_header(failure),
            tasks.DEAD_AT: self.clock.now_ms(),
        }
        if errors:
            headers[tasks.ERRORS] = history_header(tuple(errors))
        await self._broker.publish(
            replace(message, headers=headers, expiration_ms=None),
            exchange=routing.DEAD,
            routing_key=routing_key,
            timeout_seconds=PUBLISH_SECONDS,
        )
        self._events.emit("task.dead", subject=message.message_id or "", reason=failure.reason, routing_key=routing_key)

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
            "agent": self._agent_id,
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
    if isinstance(error, RemoteError):
        return error.retryable
    return policy.allows(error or Exception())
