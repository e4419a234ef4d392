"""The fetching of single messages for inspection; a queue that does not answer delays only its own fetches."""

from __future__ import annotations

import asyncio
import logging

from aiormq.abc import AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq.connection.channels import close_quietly, open_channel
from coditect.broker.rabbitmq.errors import LOST
from coditect.broker.rabbitmq.plain import PlainConsumerChannel, plain_delivery
from coditect.errors import NotFound

log = logging.getLogger(__name__)

CALL_SECONDS = 15.0


class Browsing:
    """The channels of one connection that fetch single messages; a queue without an answer blocks only its own fetch.

    A request is never withdrawn: aiormq would close its channel, and messages fetched over it would come again.
    """

    def __init__(self, background: Supervisor) -> None:
        self._background = background
        self._inlets: list[PlainConsumerChannel] = []
        self._asking: set[PlainConsumerChannel] = set()
        self._given_up: dict[asyncio.Task[Delivery | None], str] = {}
        """The unanswered fetches whose callers have given up, with their queues."""

    async def get(self, connection: AbstractConnection, queue: str) -> Delivery | None:
        """Return one message of a queue, None if it is empty; reuse an unanswered fetch that another caller gave up."""
        asked = next((one for one, its in self._given_up.items() if its == queue), None)
        if asked is None:
            asked = self._background.start(self._ask(connection, queue), name=f"get {queue}", awaited=True)
        self._given_up.pop(asked, None)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._given_up[asked] = queue
            asked.add_done_callback(self._answered)
            raise

    def _answered(self, asked: asyncio.Task[Delivery | None]) -> None:
        """Put a message back into its queue when its fetch is answered after the caller has given up."""
        if self._given_up.pop(asked, None) is None or asked.cancelled():
            return
        if (error := asked.exception()) is not None:
            log.debug("A question was not answered", extra={"reason": repr(error)})
        elif (delivery := asked.result()) is not None:
            delivery.requeue()

    async def _ask(self, connection: AbstractConnection, queue: str) -> Delivery | None:
        consumer_channel = await self._idle(connection)
        self._asking.add(consumer_channel)
        try:
            delivered = await consumer_channel.channel.basic_get(queue)
        except ChannelNotFoundEntity as error:
            raise NotFound("There is no such queue", queue=queue) from error
        finally:
            self._asking.discard(consumer_channel)
        if isinstance(delivered.delivery, Basic.GetEmpty):
            return None
        return plain_delivery(delivered, _Browsed(queue), consumer_channel.settlements)

    async def _idle(self, connection: AbstractConnection) -> PlainConsumerChannel:
        self._inlets = [one for one in self._inlets if not one.channel.is_closed]
        for consumer_channel in self._inlets:
            if consumer_channel not in self._asking:
                return consumer_channel
        consumer_channel = PlainConsumerChannel(await open_channel(connection))
        consumer_channel.start(self._background)
        self._background.start(_lose_with(consumer_channel), name="watch browsed")
        self._inlets.append(consumer_channel)
        return consumer_channel

    async def release(self) -> None:
        """Put all messages that were fetched and not settled back into their queues."""
        inlets, self._inlets = self._inlets, []
        for consumer_channel in inlets:
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await consumer_channel.settlements.flushed()
                    await close_quietly(consumer_channel.channel)
            except LOST as error:
                log.debug("A browsing channel was lost", extra={"reason": repr(error)})
            consumer_channel.lose()


async def _lose_with(consumer_channel: PlainConsumerChannel) -> None:
    """Wait for the loss of a channel, and mark the deliveries fetched over it as lost."""
    await asyncio.wait({consumer_channel.channel.closing})
    consumer_channel.lose()


class _Browsed:
    """The source of a singly fetched message's delivery, in place of the consumer that other deliveries have."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.unsettled = 1
