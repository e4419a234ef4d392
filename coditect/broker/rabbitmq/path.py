"""The port of the two wire paths, as publisher and consumer use them: `plain` is aiormq's own, `direct` Coditect's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Promise
from coditect.broker.rabbitmq.delivery import AmqpDelivery
from coditect.broker.rabbitmq.settlements import Settlements
from coditect.model.message import Message


class PublishRefused(Exception):
    """The error of a message that the broker did not take (a full queue); worth another try."""


class PublishReturned(Exception):
    """The error of a message that found no queue and came back."""


class Late(Exception):
    """The error of a publish without an outcome in time; the message may still be delivered."""


Feed = Callable[[bytes], bytes]
"""A function that sees all arriving bytes, and returns those for the library."""


class Publish(Protocol):
    """A publish on its way, as a publisher channel sees it."""

    message: Message
    exchange: str
    routing_key: str
    until: float
    """The loop time after which the publish is `Late`."""
    returned: bool
    """Whether the message came back; its confirm follows."""

    @property
    def promise(self) -> Promise:
        """The receiver of the publish's outcome."""

    def taken(self) -> None:
        """Set the outcome: the broker has the message."""

    def failed(self, error: BaseException) -> None:
        """Set the outcome to PublishRefused, PublishReturned, Late or a lost channel; another may follow `Late`."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A publish that waits for its confirm: its number and its key."""

    number: int
    """The number within its channel: from 1, in order."""
    exchange: str
    routing_key: str


class PublisherChannel(Protocol):
    """A channel that publishes with confirms and `mandatory`."""

    @property
    def connection(self) -> AbstractConnection:
        """The connection on which the channel is open."""

    @property
    def closed(self) -> bool:
        """Whether the channel can take no more publishes."""

    @property
    def ready(self) -> bool:
        """Whether `begin` may be called now."""

    @property
    def held_up(self) -> bool:
        """Whether the broker has stopped publishing, or takes the bytes more slowly than they come."""

    @property
    def oldest(self) -> Unconfirmed | None:
        """The publish that waits longest for its confirm."""

    async def give_back(self, exchange: str, routing_key: str) -> None:
        """Fail the publishes under way as if the channel were lost; if possible, not those of the given key."""

    async def close(self) -> None:
        """Close the channel, without raising any error."""

    async def gate(self) -> bool:
        """Wait while the broker says `connection.blocked`; return False after a while, for another look."""

    def send(self, message: Message, *, exchange: str, routing_key: str) -> Awaitable[object]:
        """Publish one message; done when it is confirmed. Errors come here or when awaited.

        Raises:
            PublishRefused: when the broker did not take the message; worth another try.
            PublishReturned: when no queue takes the message.
            InvalidTask: when AMQP cannot carry a property or header.
            Exception: any of `errors.LOST`, when the connection or channel is lost.
        """

    def begin(self, publish: Publish) -> None:
        """Publish on a channel that is `ready`, without a coroutine; the outcome is set on `publish`.

        Raises:
            InvalidTask: when AMQP cannot carry a property or header.
        """


class Receiver(Protocol):
    """A subscription, as a consumer channel sees it."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The name of the consumed queue."""

    def deliver(self, delivery: AmqpDelivery) -> None:
        """Take a delivery, in the call that reads it from the connection."""


class ConsumerChannel(Protocol):
    """A channel that consumes queues and settles their deliveries."""

    @property
    def channel(self) -> Channel:
        """The library's channel, for rare calls."""

    @property
    def settlements(self) -> Settlements:
        """The outstanding deliveries and their settlements."""

    def start(self, background: Supervisor) -> None:
        """Begin to write settlements, until the channel is lost."""

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Subscribe a receiver; any of `errors.LOST` is raised when the connection or channel is lost."""

    async def cancel(self, tag: str) -> None:
        """End a consumer, which still gets the deliveries on their way; raises as `consume` does."""

    def forget(self, tag: str) -> None:
        """Drop a consumer that the broker has ended."""

    def lose(self) -> None:
        """Note that the channel is gone, or goes: nothing is settled on it any more. Idempotent."""


class Question(Protocol):
    """A question to the broker without effect, asked again and again over a channel of its own."""

    def ask(self) -> asyncio.Future[bool]:
        """Ask the broker unless the earlier question is still open, and return the future of the answer.

        The future is canceled when the channel is lost; the next question opens a new channel.
        """


class WirePath(Protocol):
    """A factory of channels of one kind, whose methods raise any of `errors.LOST` when the connection is lost."""

    def tap(self, writer: asyncio.StreamWriter) -> Feed:
        """Set up a new connection before its first byte."""

    async def publisher_channel(self, connection: AbstractConnection) -> PublisherChannel:
        """Open a channel to publish on."""

    async def consumer_channel(self, connection: AbstractConnection) -> ConsumerChannel:
        """Open a channel to consume on."""

    async def question(self, connection: AbstractConnection) -> Question:
        """Open a channel that only asks whether the broker answers."""
