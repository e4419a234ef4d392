"""How frames travel: the two wire paths, seen from publisher and inlet. `plain` is aiormq's own, `direct` ours."""

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
    """The broker took the message not (a full queue); again later."""


class PublishReturned(Exception):
    """The message found no queue and came back."""


class Late(Exception):
    """Nothing is known in time; the message may still be delivered."""


Feed = Callable[[bytes], bytes]
"""Sees what has arrived; gives what the library is to see of it."""


class Publish(Protocol):
    """One publish on its way, as an outlet sees it."""

    message: Message
    exchange: str
    routing_key: str
    until: float
    """Loop time after which it is `Late`."""
    returned: bool
    """Whether the message came back; its confirm follows."""

    @property
    def promise(self) -> Promise:
        """Who waits for it."""

    def taken(self) -> None:
        """The broker has it."""

    def failed(self, error: BaseException) -> None:
        """Refused, Returned or Late, or the channel is lost. After `Late` another call may follow."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A publish that is under way."""

    number: int
    """Of its outlet: from 1, in order."""
    exchange: str
    routing_key: str


class PublisherChannel(Protocol):
    """A channel that publishes with confirms and `mandatory`."""

    @property
    def connection(self) -> AbstractConnection:
        """Whose channel it is."""

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""

    @property
    def ready(self) -> bool:
        """Whether `begin` may be called now."""

    @property
    def held_up(self) -> bool:
        """Whether the broker told us to stop, or takes the bytes more slowly than they come."""

    @property
    def oldest(self) -> Unconfirmed | None:
        """The publish that waits longest for its confirm."""

    async def give_back(self, exchange: str, routing_key: str) -> None:
        """Ends what is under way on it, as if the channel were lost; where it can, not what goes there."""

    async def close(self) -> None:
        """Closes the channel; never fails."""

    async def gate(self) -> bool:
        """Waits while the broker says `connection.blocked`; False after a while, for another look."""

    def send(self, message: Message, *, exchange: str, routing_key: str) -> Awaitable[object]:
        """One publish; done when it is confirmed.

        Raises, here or when awaited: Refused, Returned, InvalidTask for what AMQP cannot carry, and what the
        library raises when the connection or channel is lost.
        """

    def begin(self, publish: Publish) -> None:
        """The same for an outlet that is `ready`, without a coroutine: the publish is told what became of it.

        Raises: InvalidTask.
        """


class Receiver(Protocol):
    """A subscription, as the inlet's channel sees it."""

    unsettled: int

    @property
    def queue(self) -> str:
        """The queue it consumes."""

    def deliver(self, delivery: AmqpDelivery) -> None:
        """Takes a delivery in hand."""


class ConsumerChannel(Protocol):
    """A channel that consumes."""

    @property
    def channel(self) -> Channel:
        """For rare calls."""

    @property
    def settlements(self) -> Settlements:
        """What is outstanding on it."""

    def start(self, background: Supervisor) -> None:
        """Begins to write settlements, until it is lost."""

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        """Subscribes. Raises what the library raises."""

    async def cancel(self, tag: str) -> None:
        """Ends the consumer; what is on its way is still delivered. Raises what the library raises."""

    def forget(self, tag: str) -> None:
        """The broker ended the consumer."""

    def lose(self) -> None:
        """The channel is gone, or goes: nothing is settled on it any more. Idempotent."""


class WirePath(Protocol):
    """Opens channels of its kind. Raises what the library raises when the connection is lost."""

    def tap(self, writer: asyncio.StreamWriter) -> Feed | None:
        """Called for each new connection, before its first byte; None when the library sees everything."""

    async def publisher_channel(self, connection: AbstractConnection) -> PublisherChannel:
        """A channel to publish on."""

    async def consumer_channel(self, connection: AbstractConnection) -> ConsumerChannel:
        """A channel to consume on."""
