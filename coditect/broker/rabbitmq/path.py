"""The interface of the two wire paths: `plain` uses aiormq's own methods, `direct` writes and reads frames itself."""

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
    """The error of a message that the broker refused, as by a full queue; worth another try."""


class PublishReturned(Exception):
    """The error of a message that the broker returned because no queue is bound to its key."""


class Late(Exception):
    """The error of a publish without an outcome in time; the message may still be delivered."""


Feed = Callable[[bytes], bytes]
"""A function that gets all incoming bytes of a connection, and returns the bytes for aiormq."""


class Publish(Protocol):
    """A message to publish, with its exchange, key and time limit, and the methods that set the outcome."""

    message: Message
    exchange: str
    routing_key: str
    until: float
    """The event loop's time after which the publish fails as `Late`."""
    returned: bool
    """Whether the broker returned the message; the confirm of a returned message follows."""

    @property
    def promise(self) -> Promise:
        """The caller's object, such as a future, on which the outcome of the publish is set."""

    def taken(self) -> None:
        """Set the publish's outcome to success: the broker has the message."""

    def failed(self, error: BaseException) -> None:
        """Report the error of one try: the publish fails or is repeated; after `Late`, the confirm may still come."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A publish that waits for its confirm: its number, exchange and routing key."""

    number: int
    """The publish's sequence number on its channel, from 1."""
    exchange: str
    routing_key: str


class PublisherChannel(Protocol):
    """A channel that publishes messages as `mandatory` and with confirms."""

    @property
    def connection(self) -> AbstractConnection:
        """The connection on which the channel is open."""

    @property
    def closed(self) -> bool:
        """Tell whether the channel can take no more publishes."""

    @property
    def ready(self) -> bool:
        """Tell whether a publish can be written at once, by `begin`."""

    @property
    def held_up(self) -> bool:
        """Tell whether the broker has an alarm, or reads the bytes more slowly than they are written."""

    @property
    def oldest(self) -> Unconfirmed | None:
        """The publish that has waited longest for its confirm; None when none waits."""

    async def close(self) -> None:
        """Close the channel, and fail its unconfirmed publishes; never raises."""

    async def gate(self) -> bool:
        """Wait a short time while the broker has an alarm or reads slowly; return whether publishing may go on."""

    def send(self, message: Message, *, exchange: str, routing_key: str) -> Awaitable[object]:
        """Publish one message; the returned awaitable ends when the broker has confirmed the message.

        Raises:
            PublishRefused: when the broker did not take the message; worth another try.
            PublishReturned: when no queue takes the message.
            InvalidTask: when AMQP cannot carry a property or header.
            Exception: any of `errors.LOST`, when the connection or channel is lost.
        """

    def begin(self, publish: Publish) -> None:
        """Write one publish on a channel that is `ready`; the publish gets its outcome later.

        Raises:
            InvalidTask: when AMQP cannot carry a property or header.
        """


class Receiver(Protocol):
    """A consumer, as the consumer channel sees it, to which the channel passes deliveries."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The name of the consumed queue."""

    def deliver(self, delivery: AmqpDelivery) -> None:
        """Pass a delivery to the consumer's callback, which runs before this call returns."""


class ConsumerChannel(Protocol):
    """A channel that consumes queues and settles their deliveries."""

    @property
    def channel(self) -> Channel:
        """The underlying aiormq channel, which callers use to close the channel and to register callbacks."""

    @property
    def settlements(self) -> Settlements:
        """The channel's unsettled deliveries, and the decided settlements that are not written yet."""

    def start(self, background: Supervisor) -> None:
        """Start writing settlements, until the channel is lost."""

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Start a consumer of the receiver's queue; raises any of `errors.LOST` when the channel is lost."""

    async def cancel(self, tag: str) -> None:
        """Cancel a consumer, which still gets deliveries that are under way; raises as `consume` does."""

    def forget(self, tag: str) -> None:
        """Pass no more deliveries to a consumer that the broker has canceled."""

    def lose(self) -> None:
        """Mark the channel as gone: its deliveries can no longer be settled; idempotent."""


class Question(Protocol):
    """A question without side effect, over a channel of its own, that tests whether the broker answers."""

    def ask(self) -> asyncio.Future[bool]:
        """Send the question unless an earlier one is still open, and return the future of the answer.

        The future is canceled when the channel is lost; the next question opens a new channel.
        """


class WirePath(Protocol):
    """A factory of channels to publish and to consume; it raises an error of `errors.LOST` on a lost connection."""

    def install(self, writer: asyncio.StreamWriter) -> Feed:
        """Attach to a new connection before any bytes arrive, and return the function that takes its incoming bytes."""

    async def publisher_channel(self, connection: AbstractConnection) -> PublisherChannel:
        """Open a channel on which messages are published with confirms."""

    async def consumer_channel(self, connection: AbstractConnection) -> ConsumerChannel:
        """Open a channel on which queues are consumed."""

    async def question(self, connection: AbstractConnection) -> Question:
        """Open a channel that only asks whether the broker answers."""
