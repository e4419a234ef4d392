"""A plain channel, and what a test expects of the versions of RabbitMQ on which it was measured."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import aiormq
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldValue

T = TypeVar("T")
OLD, NEW = "3.10", "4.0"


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection without any of our code between the test and the broker, and names of the test's own."""

    connection: AbstractConnection
    channel: AbstractChannel
    version: str
    prefix: str = field(default_factory=lambda: f"version-{uuid4().hex[:12]}")
    declared: list[str] = field(default_factory=list)

    def expected(self, by_version: Mapping[str, T]) -> T:
        """What was measured on the version of this run."""
        for version, seen in by_version.items():
            if self.version.startswith(f"{version}."):
                return seen
        pytest.skip(f"measured on {', '.join(by_version)}, this is {self.version}")

    async def queue(self, short: str, **arguments: FieldValue) -> str:
        """Declares a quorum queue; an underscore stands for the hyphen of an argument."""
        name = f"{self.prefix}.{short}"
        more = {f"x-{argument.replace('_', '-')}": value for argument, value in arguments.items()}
        await self.channel.queue_declare(name, durable=True, arguments={"x-queue-type": "quorum", **more})
        self.declared.append(name)
        return name

    async def put(self, queue: str, body: bytes = b"x", **properties: object) -> None:
        """Publishes straight into the queue, confirmed."""
        await self.channel.basic_publish(body, routing_key=queue, properties=Basic.Properties(**properties))  # type: ignore[arg-type]

    async def get(self, queue: str) -> DeliveredMessage | None:
        """The queue's next message, unsettled."""
        answer = await self.channel.basic_get(queue)
        return answer if isinstance(answer.delivery, Basic.GetOk) else None

    async def hand_back(self, message: DeliveredMessage) -> None:
        """Requeues it."""
        assert message.delivery_tag is not None
        await self.channel.basic_nack(message.delivery_tag, requeue=True)


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    """Connected; the queues are removed at the end."""
    connection = await aiormq.connect(url)
    wire = Wire(connection, await connection.channel(), str(connection.server_properties["version"]))
    try:
        yield wire
    finally:
        if connection.is_closed:
            connection = await aiormq.connect(url)
        sweeper = await connection.channel()
        for name in wire.declared:
            await sweeper.queue_delete(name)
        await connection.close()


def headers_of(message: DeliveredMessage | None) -> dict[str, FieldValue]:
    """What it carries; empty for none."""
    return dict((message and message.header.properties.headers) or {})
