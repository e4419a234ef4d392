"""Making and probing entities: everything rare, on throw-away channels, since a refusal closes the channel."""

from __future__ import annotations

import re
from typing import Any

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity, ChannelPreconditionFailed

from coditect.broker.amqp.channels import CALL_SECONDS, close_quietly, open_channel
from coditect.broker.amqp.faults import LOST, refusal
from coditect.broker.plan import MISSING, SAME, Probe
from coditect.broker.port import QueueStats
from coditect.broker.topology import Binding, Exchange, Queue, Topology
from coditect.errors import SetupError

_PRIVATE = re.compile(
    r"(reply|agent|events|coditect\.epoch)\.|(unrouted|dead)\.notices$|control$|(control|results)\.\d+$"
)
"""What one process, or one role, alone consumes. How many shards there are, only the dispatchers' ledger knows."""


async def declare(connection: AbstractConnection, topology: Topology, *, only_check: bool) -> None:
    """Makes the entities exist; with `only_check` just the process's own queues, the rest must be there."""
    channel = await open_channel(connection)
    try:
        for exchange in topology.exchanges:
            await _one(channel, exchange, passive=only_check)
        for queue in topology.queues:
            await _one(channel, queue, passive=only_check and not _PRIVATE.match(queue.name))
        for binding in topology.bindings:
            if not only_check or _PRIVATE.match(binding.queue):
                await _bind(channel, binding)
    finally:
        await close_quietly(channel)


async def _one(channel: Channel, entity: Exchange | Queue, *, passive: bool) -> None:
    try:
        await _declare_entity(channel, entity, passive=passive)
    except LOST as error:
        if passive and isinstance(error, ChannelNotFoundEntity):
            raise SetupError(
                "The broker lacks what this process needs and CODITECT_DECLARE is false",
                missing=entity.name,
                fix="coditect topology apply",
            ) from error
        refused = refusal(error, entity=entity.name)
        if refused is None:
            raise
        raise refused from error


async def _declare_entity(channel: Channel, entity: Exchange | Queue, *, passive: bool) -> None:
    if isinstance(entity, Exchange):
        await channel.exchange_declare(
            entity.name,
            exchange_type=entity.type.value,
            passive=passive,
            durable=True,
            arguments=_arguments(entity),
            timeout=CALL_SECONDS,
        )
    else:
        await channel.queue_declare(
            entity.name, passive=passive, durable=True, arguments=_arguments(entity), timeout=CALL_SECONDS
        )


def _arguments(entity: Exchange | Queue) -> dict[str, Any]:
    return dict(entity.arguments)


async def _bind(channel: Channel, binding: Binding) -> None:
    try:
        await channel.queue_bind(binding.queue, binding.exchange, binding.key, timeout=CALL_SECONDS)
    except LOST as error:
        refused = refusal(error, entity=binding.exchange) or refusal(error, entity=binding.queue)
        if refused is None:
            raise
        raise refused from error


async def probe(connection: AbstractConnection, entity: Exchange | Queue) -> Probe:
    """First passively: is it there? Then with our arguments: an equal declare changes nothing, another is refused."""
    for passive in (True, False):
        channel = await open_channel(connection)
        try:
            await _declare_entity(channel, entity, passive=passive)
        except ChannelNotFoundEntity:
            return MISSING
        except ChannelPreconditionFailed as error:
            return Probe.differs(str(error))
        finally:
            await close_quietly(channel)
    return SAME


async def stats(connection: AbstractConnection, queue: str) -> QueueStats | None:
    """Ready messages and consumers; None when there is no such queue."""
    looks = Looks()
    try:
        return await looks.stats(connection, queue)
    finally:
        await looks.close()


class Looks:
    """Looks at one queue after the other, by one channel as long as it lasts: a third of the requests of `stats`.

    One look at a time, since a queue that is missing costs the channel; and closed at the end of the round.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = None
        self._connection: AbstractConnection | None = None

    async def stats(self, connection: AbstractConnection, queue: str) -> QueueStats | None:
        """As the function `stats`."""
        channel = await self._opened(connection)
        try:
            reply = await channel.queue_declare(queue, passive=True, timeout=CALL_SECONDS)
        except ChannelNotFoundEntity:
            return None
        except ChannelLockedResource:
            return QueueStats(messages=0, consumers=1)  # exclusive to somebody: it is there and consumed
        except BaseException:
            await self.close()  # an answer may still come on it
            raise
        return QueueStats(messages=reply.message_count or 0, consumers=reply.consumer_count or 0)

    async def _opened(self, connection: AbstractConnection) -> Channel:
        if self._channel is None or self._channel.is_closed or self._connection is not connection:
            self._channel, self._connection = await open_channel(connection), connection
        return self._channel

    async def close(self) -> None:
        """Gives the channel back; may raise what a call on a lost connection raises."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await close_quietly(channel)


async def delete_queue(connection: AbstractConnection, queue: str, *, if_empty: bool, classic: bool) -> None:
    """Removes the queue when it is there; quorum queues know no conditional delete, so the count is read first."""
    found = await stats(connection, queue)
    if found is None or (if_empty and found.messages):
        return
    channel = await open_channel(connection)
    try:
        await channel.queue_delete(queue, if_empty=if_empty and classic, timeout=CALL_SECONDS)
    except ChannelPreconditionFailed:
        return  # something came meanwhile
    finally:
        await close_quietly(channel)
