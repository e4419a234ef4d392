"""Request-Reply (EIP): submits tasks with a return address and gives each reply to whoever waits for it.

One per process. The reply queue is durable and keeps its name over reconnects, so a reply that was
confirmed arrives even when the broker was restarted in between. The first reply counts.

A reply is known by its correlation id alone, and everybody may have an agent write to our queue: so the correlation id
of a request is a token that only those know who have the request, never an id that somebody could work out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterator
from functools import partial
from types import TracebackType
from typing import Self

from coditect.blobs import NO_BLOBS, Blobs
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import INBOX_LOOK_SECONDS, reply_queue
from coditect.errors import CoditectError, InvalidTask, Overloaded, TooLarge, Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Task
from coditect.wire import mail, routing
from coditect.wire.target import pinned_message
from coditect.wire.tasks import MAX_BODY_BYTES, read_result, task_message

log = logging.getLogger(__name__)

PREFETCH = 1_000
MOST_LOOKED_AT = 10_000
WITHDRAW_SECONDS = 10.0
_TOKEN_BYTES = 16
_DRAWN_AT_ONCE = 256


def tokens() -> Iterator[str]:
    """Correlation ids that nobody can guess: 128 bits of the system's chance each."""
    width = 2 * _TOKEN_BYTES
    while True:
        drawn = os.urandom(_DRAWN_AT_ONCE * _TOKEN_BYTES).hex()
        for at in range(0, len(drawn), width):
            yield drawn[at : at + width]


class Requests:
    """The replies of one process. `async with` declares and consumes its reply queue."""

    def __init__(self, broker: Broker, *, name: str, quorum: bool = False, blobs: Blobs = NO_BLOBS) -> None:
        self._broker = broker
        self.blobs = blobs
        """Where bodies over the inline limit lie: whoever makes a task or reads an outcome asks there."""
        self.reply_to = f"reply.{name}"
        self._quorum = quorum
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._consumer: Consumer | None = None
        self.new_token = partial(next, tokens())
        """A correlation id for the next request."""
        self._looked_at: dict[AgentId, float] = {}
        """When an agent's inbox was last seen, on the event loop's clock."""
        self.strays = 0
        """Replies that nobody waited for: late, forged, or the second of two executions."""

    async def __aenter__(self) -> Self:
        await self._broker.declare(reply_queue(self.reply_to, quorum=self._quorum))
        self._consumer = await self._broker.consume(self.reply_to, self._replied, prefetch=PREFETCH, group="replies")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.cancel()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def expect(self, correlation_id: str) -> asyncio.Future[Outcome]:
        """The reply to come. Two who expect the same one share it."""
        future = self._waiting.get(correlation_id)
        if future is None:
            future = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        return future

    def forget(self, correlation_id: str) -> None:
        """Nobody waits any more."""
        future = self._waiting.pop(correlation_id, None)
        if future is not None:
            future.cancel()

    def _replied(self, delivery: Delivery) -> None:
        message = delivery.message
        future = self._waiting.pop(message.correlation_id or "", None)
        if future is None or future.done():
            self.strays += 1
        else:
            try:
                future.set_result(read_result(message))
            except InvalidTask as error:
                log.warning("A reply was not readable", extra={"reason": str(error)})
                future.set_exception(error)
        delivery.ack()

    def send(self, task: Task, *, timeout_seconds: float, pin: AgentId | None = None) -> Awaitable[None]:
        """Publishes a task through our door; done when the broker has it.

        A pinned task goes to that agent's inbox, and at once to the capability's queue when the inbox is
        gone or full. Raises, here or when awaited: TooLarge; Unroutable when nobody offers the capability; what
        `publish` raises.
        """
        if len(task.body) > MAX_BODY_BYTES:
            raise TooLarge("The body is over the inline limit", bytes=len(task.body), limit=MAX_BODY_BYTES)
        message = task_message(task, first=True)
        if pin is not None:
            return self._send_pinned(message, task, pin, timeout_seconds)
        return self._broker.publish(
            message, exchange=routing.SUBMIT, routing_key=routing.key_of(task), timeout_seconds=timeout_seconds
        )

    async def withdraw(self, task: Task) -> None:
        """Has agents end a task that was sent, or not start it: who asked for it has ended. At most once."""
        letter = mail.cancel(task.id or "", reason="who asked for it has ended", correlation_id=task.correlation_id)
        try:
            await self._broker.publish(
                letter, exchange=routing.BROADCAST, routing_key="", timeout_seconds=WITHDRAW_SECONDS
            )
        except CoditectError as error:
            log.info("A request could not be withdrawn", extra={"task_id": task.id, "reason": str(error)})

    async def _send_pinned(self, message: Message, task: Task, pin: AgentId, timeout_seconds: float) -> None:
        if not await self._sent_to_inbox(message, task, pin, timeout_seconds):
            await self._broker.publish(
                message, exchange=routing.SUBMIT, routing_key=routing.key_of(task), timeout_seconds=timeout_seconds
            )

    async def _sent_to_inbox(self, message: Message, task: Task, pin: AgentId, timeout_seconds: float) -> bool:
        if not await self._has_inbox(pin):
            return False
        try:
            await self._broker.publish(
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
        """Whether the agent's inbox is there, and stays while the task is in it: it was looked at not long ago."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at.get(pin, -INBOX_LOOK_SECONDS) < INBOX_LOOK_SECONDS:
            return True
        if await self._broker.stats(routing.inbox_queue(pin)) is None:
            self._looked_at.pop(pin, None)
            return False
        if len(self._looked_at) >= MOST_LOOKED_AT:
            self._looked_at.clear()
        self._looked_at[pin] = now
        return True
