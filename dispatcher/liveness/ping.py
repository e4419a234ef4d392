"""The pings to agents' mailboxes, which ask whether an agent lives, or whether it has a certain task."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from secrets import token_hex
from types import TracebackType
from typing import Self

from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import reply_queue
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import control_messages, routing
from coditect.wire.json import loads

PONG_SECONDS = 1.0
SLACK_SECONDS = 0.5
"""The delay of a ping's timeout above which this process itself must have been frozen."""
PONG_PREFETCH = 1_000


class PingAnswer(Enum):
    """The meaning of an agent's answer to a ping, or of a missing answer."""

    PONG = auto()
    WITHOUT = auto()
    """The agent lives, and does not have the task in question."""
    SILENCE = auto()
    """The broker accepted the ping, and no answer came in time."""
    NO_MAIL = auto()
    """The agent's mailbox queue does not exist."""
    UNKNOWN = auto()
    """Nothing is known of the agent, because the ping or its answer may not have got through."""


class Pings:
    """The sender of one process's pings; `async with` declares and consumes the queue for answers."""

    def __init__(self, broker: Broker, *, name: str) -> None:
        self._broker = broker
        self._reply_to = f"reply.{name}"
        self._waiting: dict[str, asyncio.Future[PingAnswer]] = {}
        self._consumer: Consumer | None = None

    async def __aenter__(self) -> Self:
        await self._broker.declare(reply_queue(self._reply_to))
        self._consumer = await self._broker.consume(
            self._reply_to, self._answered, prefetch=PONG_PREFETCH, group="pings"
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.cancel()

    async def ask(
        self, agent: AgentId, *, task_id: str | None = None, within_seconds: float = PONG_SECONDS
    ) -> PingAnswer:
        """Ask an agent whether it lives or runs a task; return what its answer or silence means; never raises."""
        loop = asyncio.get_running_loop()
        token = token_hex(16)
        answered: asyncio.Future[PingAnswer] = loop.create_future()
        self._waiting[token] = answered
        try:
            await self._send(agent, token, task_id)
            sent_at = loop.time()
            await asyncio.wait((answered,), timeout=within_seconds)
        except Unroutable:
            return await self._without_answer(agent)
        except CoditectError:
            return PingAnswer.UNKNOWN
        finally:
            del self._waiting[token]
        if answered.done():
            return answered.result()
        stood_still = loop.time() - sent_at > within_seconds + SLACK_SECONDS
        return PingAnswer.UNKNOWN if stood_still or not self._broker.connected else PingAnswer.SILENCE

    async def _without_answer(self, agent: AgentId) -> PingAnswer:
        """Return what it means that no queue took a ping: nothing, if the mailbox is there or its node is down."""
        try:
            missing = await self._broker.stats(routing.mailbox_queue(agent)) is None
        except CoditectError:
            missing = False
        return PingAnswer.NO_MAIL if missing and self._broker.connected else PingAnswer.UNKNOWN

    async def _send(self, agent: AgentId, token: str, task_id: str | None) -> None:
        await self._broker.publish(
            control_messages.ping(reply_to=self._reply_to, task_id=task_id, correlation_id=token),
            exchange=routing.AGENTS,
            routing_key=routing.mailbox_key(agent),
            timeout_seconds=PONG_SECONDS,
            wait_when_full=False,
        )

    def _answered(self, delivery: Delivery) -> None:
        answered = self._waiting.get(delivery.message.correlation_id or "")
        if answered is not None and not answered.done():
            answered.set_result(_read(delivery.message))
        delivery.ack()


def _read(pong: Message) -> PingAnswer:
    """Return the meaning of an agent's answer: WITHOUT if it clearly denies the task, else PONG."""
    try:
        document = loads(pong.body)
    except InvalidTask:
        return PingAnswer.PONG
    has_no_task = isinstance(document, dict) and document.get("task", document) is None
    return PingAnswer.WITHOUT if has_no_task else PingAnswer.PONG
