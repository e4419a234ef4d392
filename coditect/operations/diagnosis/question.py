"""A question to the mailboxes of all agents at once, or of one, and the answers that come in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from secrets import token_hex
from typing import Any, TypeAlias

from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import reply_queue
from coditect.errors import InvalidTask, NotFound, Unroutable
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.routing import Address

ANSWER_SECONDS = 1.0
"""How long the agents may take to answer."""
PUBLISH_SECONDS = 10.0

EVERY_AGENT = Address(routing.BROADCAST, "")

PingReply: TypeAlias = Mapping[str, Any]
"""The content of an agent's answer: its id and load, and what the question asked for."""


async def ask_agents(
    broker: Broker, question: Message, *, enough: Callable[[list[PingReply]], bool], to: Address = EVERY_AGENT
) -> list[PingReply]:
    """Send a question to every agent; return the answers when `enough(answers)` is true, or time is up.

    `to` is the address of one agent's mailbox in place of all.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
        Overloaded: when the broker takes no question to the agents; retryable. So is PublishUnconfirmed, without a
            word from the broker whether it took the question.
    """
    name, token = f"reply.question-{token_hex(6)}", token_hex(16)
    answers: list[PingReply] = []
    heard = asyncio.Event()

    def answered(delivery: Delivery) -> None:
        with suppress(InvalidTask):
            content = loads(delivery.message.body) if delivery.message.correlation_id == token else None
            if isinstance(content, dict):
                answers.append(content)
        delivery.ack()
        if enough(answers):
            heard.set()

    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.delete_queue, name)
        try:
            await broker.declare(reply_queue(name))
        except NotFound:  # no agent and no client ever was at this broker
            return []
        consumer = await broker.consume(name, answered, prefetch=1_000, group="replies")
        stack.push_async_callback(consumer.cancel)
        with suppress(NotFound, Unroutable, TimeoutError):  # no agent is there, or some are silent
            await broker.publish(
                replace(question, reply_to=name, correlation_id=token),
                exchange=to.exchange,
                routing_key=to.routing_key,
                timeout_seconds=PUBLISH_SECONDS,
            )
            async with asyncio.timeout(ANSWER_SECONDS):
                await heard.wait()
    return answers
