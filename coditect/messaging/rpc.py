"""Request and reply (EIP): tasks sent with a return address, and each reply passed to the caller that waits.

A process has one `Requests`, with one reply queue. The queue is durable and keeps its name over reconnects, so a
confirmed reply arrives even when the broker restarted in between. The first reply counts.

A reply is identified by its correlation id alone, and anyone may have an agent write to the reply queue: so the
correlation id of a request is a random token that only the holders of the request know.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterator
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from coditect.blobs import NO_BLOBS, Blobs
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import INBOX_LOOK_SECONDS, reply_queue
from coditect.errors import CoditectError, InvalidTask, Overloaded, TooLarge, Unroutable
from coditect.messaging.parts import PartReader
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Task
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.telemetry.names import REPLIES_STRAY
from coditect.telemetry.tracing.messaging import begin_publish
from coditect.telemetry.tracing.port import NO_TRACING, SKIPPED, Tracing, ended_with
from coditect.wire import control_messages, routing
from coditect.wire.addresses.target import pinned_message
from coditect.wire.parts import PART_TYPE
from coditect.wire.tasks import MAX_BODY_BYTES, read_result, task_message

log = logging.getLogger(__name__)

PREFETCH = 1_000
MOST_LOOKED_AT = 10_000
WITHDRAW_SECONDS = 10.0
_TOKEN_BYTES = 16
_DRAWN_AT_ONCE = 256


def tokens() -> Iterator[str]:
    """Yield correlation ids that cannot be guessed: 128 random bits of the operating system each."""
    width = 2 * _TOKEN_BYTES
    while True:
        drawn = os.urandom(_DRAWN_AT_ONCE * _TOKEN_BYTES).hex()
        for at in range(0, len(drawn), width):
            yield drawn[at : at + width]


class Requests:
    """The tasks that a process sends with a return address, and their replies; `async with` opens the reply queue."""

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        blobs: Blobs = NO_BLOBS,
        metrics: Metrics | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.broker = broker
        """The broker of the process."""
        self.name = name
        """The name of the process: an agent's id, or a client's name."""
        self.tracing = tracing
        """The tracing of the process."""
        self.blobs = blobs
        """The blob store for bodies over the inline limit, for makers of tasks and readers of outcomes."""
        self.reply_to = f"reply.{name}"
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._streams: WeakValueDictionary[str, PartReader] = WeakValueDictionary()
        """The readers of streamed results, by correlation id; each lives as long as its task's handle."""
        self._consumer: Consumer | None = None
        self.new_token = partial(next, tokens())
        """Return a fresh random correlation id for the next request."""
        self._looked_at: dict[AgentId, float] = {}
        """The event loop's time at which each agent's inbox queue was last seen."""
        self.metrics = metrics or MemoryMetrics()
        """The metrics of the process."""
        self.strays = self.metrics.counter(REPLIES_STRAY)

    async def __aenter__(self) -> Self:
        await self.broker.declare(reply_queue(self.reply_to))
        self._consumer = await self.broker.consume(self.reply_to, self._replied, prefetch=PREFETCH, group="replies")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.cancel()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def begin(self) -> tuple[str, asyncio.Future[Outcome]]:
        """Return a random correlation id for a new request, and the future of the reply."""
        correlation_id = self.new_token()
        return correlation_id, self.expect(correlation_id)

    def expect(self, correlation_id: str) -> asyncio.Future[Outcome]:
        """Return the future of the reply with a correlation id, the same for all callers until the reply comes."""
        future = self._waiting.get(correlation_id)
        if future is None:
            future = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        return future

    def expect_parts(self, task: Task) -> PartReader:
        """Return the reader of a streamed task's parts, which gets parts for as long as the reader is referenced."""
        reader = PartReader(self.broker, self.blobs, task.id or TaskId(""))
        self._streams[task.correlation_id or ""] = reader
        return reader

    def forget(self, correlation_id: str) -> None:
        """Cancel the future of the reply with a correlation id, so that a later reply is dropped."""
        future = self._waiting.pop(correlation_id, None)
        if future is not None:
            future.cancel()

    def _replied(self, delivery: Delivery) -> None:
        message = delivery.message
        if message.type == PART_TYPE:
            self._part_arrived(message)
            delivery.ack()
            return
        future = self._waiting.pop(message.correlation_id or "", None)
        if future is None or future.done():
            self.strays.value += 1
        else:
            try:
                future.set_result(read_result(message))
            except InvalidTask as error:
                log.warning("A reply was not readable", extra={"reason": str(error)})
                future.set_exception(error)
        delivery.ack()

    def _part_arrived(self, message: Message) -> None:
        reader = self._streams.get(message.correlation_id or "")
        if reader is None:
            self.strays.value += 1
            return
        try:
            reader.arrived(message)
        except InvalidTask as error:
            log.warning("A part was not readable", extra={"reason": str(error)})

    def send(
        self, task: Task, *, timeout_seconds: float, pin: AgentId | None = None, wait_when_full: bool = True
    ) -> Awaitable[None]:
        """Publish a task for any agent, or if possible for agent `pin`; the awaitable ends with the broker's confirm.

        A pinned task goes to that agent's inbox, and at once to the capability's queue when the inbox is gone or full.
        With `wait_when_full=False` a full queue of the capability is an error at once, else when the time is over.
        Raises, at the call or when awaited:

        Raises:
            TooLarge: when the body is over the inline limit.
            Unroutable: when no agent offers the capability.
            CoditectError: any other error of `publish`.
        """
        if len(task.body) > MAX_BODY_BYTES:
            raise TooLarge("The body is over the inline limit", bytes=len(task.body), limit=MAX_BODY_BYTES)
        routing_key, span = routing.key_of(task), None
        if self.tracing.active:
            span = begin_publish(self.tracing, task, exchange=routing.SUBMIT, routing_key=routing_key)
        message = task_message(task, first=True, trace=None if span is SKIPPED else span)
        if pin is not None:
            sent: Awaitable[None] = self._send_pinned(message, task, pin, timeout_seconds, wait_when_full)
        else:
            sent = self.broker.publish(
                message,
                exchange=routing.SUBMIT,
                routing_key=routing_key,
                timeout_seconds=timeout_seconds,
                wait_when_full=wait_when_full,
            )
        return sent if span is None or not span.sampled else ended_with(span, sent)

    async def withdraw(self, task: Task) -> None:
        """Ask all agents, at most once, to cancel a task that this process sent and whose requester has ended."""
        reason = "who asked for it has ended"
        message = control_messages.cancel(task.id or "", reason=reason, correlation_id=task.correlation_id)
        try:
            await self.broker.publish(
                message, exchange=routing.BROADCAST, routing_key="", timeout_seconds=WITHDRAW_SECONDS
            )
        except CoditectError as error:
            log.info("A request could not be withdrawn", extra={"task_id": task.id, "reason": str(error)})

    async def _send_pinned(
        self, message: Message, task: Task, pin: AgentId, timeout_seconds: float, wait_when_full: bool
    ) -> None:
        if not await self._sent_to_inbox(message, task, pin, timeout_seconds):
            await self.broker.publish(
                message,
                exchange=routing.SUBMIT,
                routing_key=routing.key_of(task),
                timeout_seconds=timeout_seconds,
                wait_when_full=wait_when_full,
            )

    async def _sent_to_inbox(self, message: Message, task: Task, pin: AgentId, timeout_seconds: float) -> bool:
        if not await self._has_inbox(pin):
            return False
        try:
            await self.broker.publish(
                pinned_message(message, task),
                exchange=routing.AGENTS,
                routing_key=pin,
                timeout_seconds=timeout_seconds,
                wait_when_full=False,
            )
        except (Unroutable, Overloaded):
            return False
        return True

    async def _has_inbox(self, pin: AgentId) -> bool:
        """Tell whether an agent's inbox exists; a yes is reused for a time, shorter than an unused inbox lives."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at.get(pin, -INBOX_LOOK_SECONDS) < INBOX_LOOK_SECONDS:
            return True
        if await self.broker.stats(routing.inbox_queue(pin)) is None:
            self._looked_at.pop(pin, None)
            return False
        if len(self._looked_at) >= MOST_LOOKED_AT:
            self._looked_at.clear()
        self._looked_at[pin] = now
        return True
