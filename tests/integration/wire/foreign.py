"""Clients that know nothing of Coditect: pika (blocking, so in a thread) and Debian's amqp-tools.

Nothing here imports `coditect`: an exchange, a key, a body, and whatever AMQP itself offers.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pika
from pika.adapters.blocking_connection import BlockingChannel

TASKS = "coditect.tasks"
REPLIES = "coditect.replies"
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A message as pika gives it."""

    body: bytes
    headers: Mapping[str, Any]
    correlation_id: str | None
    type: str | None
    properties: pika.BasicProperties = field(repr=False, compare=False)

    @property
    def status(self) -> object:
        return self.headers.get("x-coditect-status")


@contextmanager
def channel(url: str) -> Iterator[BlockingChannel]:
    """A channel with confirms on a connection of its own."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened
    finally:
        connection.close()


async def blocking(call: Callable[..., T], *arguments: Any, **more: Any) -> T:
    """Runs a blocking client beside the loop, on which the agent works."""
    return await asyncio.to_thread(call, *arguments, **more)


def publish(url: str, key: str, *bodies: bytes, exchange: str = TASKS, **properties: Any) -> None:
    """Publishes each body; returns when the broker has taken all."""
    with channel(url) as opened:
        for body in bodies:
            opened.basic_publish(exchange, key, body, pika.BasicProperties(**properties), mandatory=True)


def ask(url: str, key: str, body: bytes, *, seconds: float = 10.0, **properties: Any) -> Answer:
    """Request-reply over an exclusive queue that the broker names, through the default exchange."""
    (answer,) = ask_many(url, key, [(body, properties)], seconds=seconds)
    return answer


def ask_many(
    url: str, key: str, requests: list[tuple[bytes, dict[str, Any]]], *, seconds: float = 10.0
) -> list[Answer]:
    """Several requests over one reply queue: as many answers, in the order of their arrival."""
    with channel(url) as opened:
        queue = own_queue(opened)
        for body, properties in requests:
            wanted = pika.BasicProperties(**{"reply_to": queue, **properties})
            opened.basic_publish(TASKS, key, body, wanted, mandatory=True)
        return answers(opened, queue, many=len(requests), seconds=seconds)


def ask_directly(url: str, key: str, body: bytes, *, seconds: float = 10.0) -> Answer:
    """Request-reply over RabbitMQ's direct reply-to: no queue at all; consume first, on the same channel."""
    arrived: list[Answer] = []

    def take(_: Any, __: Any, properties: pika.BasicProperties, answer: bytes) -> None:
        arrived.append(_answer(properties, answer))

    with channel(url) as opened:
        opened.basic_consume(DIRECT_REPLY_TO, take, auto_ack=True)
        opened.basic_publish(TASKS, key, body, pika.BasicProperties(reply_to=DIRECT_REPLY_TO), mandatory=True)
        deadline = time.monotonic() + seconds
        while not arrived and time.monotonic() < deadline:
            opened.connection.process_data_events(time_limit=1)
    assert arrived, "no answer came in time"
    return arrived[0]


def ask_through_replies(url: str, key: str, body: bytes, name: str, *, seconds: float = 10.0) -> Answer:
    """Request-reply over a durable `reply.*` queue that is bound to the system's exchange for replies."""
    with channel(url) as opened:
        opened.queue_declare(name, durable=True, arguments={"x-expires": 60_000})
        opened.queue_bind(name, REPLIES, name)
        opened.basic_publish(TASKS, key, body, pika.BasicProperties(reply_to=name), mandatory=True)
        (answer,) = answers(opened, name, many=1, seconds=seconds)
        opened.queue_delete(name)
        return answer


def own_queue(opened: BlockingChannel) -> str:
    """A queue that goes with the connection, named by the broker."""
    name = opened.queue_declare("", exclusive=True).method.queue
    assert name
    return name


def properties(**given: Any) -> pika.BasicProperties:
    """The properties of a message."""
    return pika.BasicProperties(**given)


def answers(opened: BlockingChannel, queue: str, *, many: int, seconds: float) -> list[Answer]:
    """So many messages of the queue, in the order of their arrival."""
    replies = opened.consume(queue, auto_ack=True, inactivity_timeout=seconds)
    return [_next(replies) for _ in range(many)]


def _next(replies: Iterator[Any]) -> Answer:
    method, properties, body = next(replies)
    assert method is not None, "no answer came in time"
    return _answer(properties, body)


def _answer(properties: pika.BasicProperties, body: bytes) -> Answer:
    return Answer(body, properties.headers or {}, properties.correlation_id, properties.type, properties)


def tool(*command: str, stdin: bytes = b"", seconds: float = 15.0) -> bytes:
    """Runs one of the amqp-tools; what it printed."""
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout
