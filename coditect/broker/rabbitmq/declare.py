"""The declaration and comparison of exchanges and queues, and other rare calls, on channels of their own.

A refusal closes the channel.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aiormq.abc import AbstractConnection, ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp import commands
from pamqp.base import Frame

from coditect.broker.port import QueueStats
from coditect.broker.rabbitmq.connection.channels import CALL_SECONDS, close_quietly, open_channel
from coditect.broker.rabbitmq.errors import LOST, away, is_away, refusal
from coditect.broker.topology import Binding, Exchange, Queue, Topology
from coditect.broker.topology_diff import MISSING, SAME, Probe
from coditect.errors import CoditectError, SetupError

AT_ONCE = 50
"""The number of declarations that are sent before the broker's answer is awaited."""
_NAMED = re.compile(r"(?:exchange|queue) '([^']*)'")
_PRIVATE = re.compile(
    r"(reply|agent|events|coditect\.epoch)\.|(unrouted|dead)\.notices$|control$|(control|results)\.\d+$"
)
"""A pattern of the queues that only one process or one role consumes."""


def is_private(queue: str) -> bool:
    """Tell by a queue's name whether it is private: declared by one process alone, or by the dispatchers alone."""
    return _PRIVATE.match(queue) is not None


async def declare(
    connection: AbstractConnection, topology: Topology, *, only_check: bool, channel: Channel | None = None
) -> None:
    """Declare exchanges, queues and bindings; if `only_check`, only check exchanges and shared queues for existence.

    Private queues, those of one process or of the dispatchers, are declared all the same, with their bindings.

    All entities are sent at once, with an answer awaited for every `AT_ONCE`. A given `channel` is closed at the end.

    Raises:
        CoditectError: when the broker refuses an entity.
        Exception: any of `errors.LOST`, when the connection is lost.
    """
    frames = [_frame(entity, passive=passive) for entity, passive in _in_order(topology, only_check=only_check)]
    if not frames and channel is None:
        return
    if channel is None or channel.is_closed:
        channel = await open_channel(connection)
    try:
        for first in range(0, len(frames), AT_ONCE):
            await _send(channel, frames[first : first + AT_ONCE])
    except LOST as error:
        raise _refused(channel, error, only_check=only_check) from error
    finally:
        await close_quietly(channel)


def _in_order(topology: Topology, *, only_check: bool) -> Iterator[tuple[Exchange | Queue | Binding, bool]]:
    """Yield a topology's exchanges, queues and bindings in order, each with True if it is only checked, not declared.

    With `only_check`, those are the exchanges and the shared queues; the bindings of shared queues are left out.
    """
    for exchange in topology.exchanges:
        yield exchange, only_check
    for queue in topology.queues:
        yield queue, only_check and not is_private(queue.name)
    for binding in topology.bindings:
        if not only_check or is_private(binding.queue):
            yield binding, False


def _frame(entity: Exchange | Queue | Binding, *, passive: bool) -> Frame:
    """Return the `nowait` frame that declares an exchange, queue or binding; if `passive`, that only checks one."""
    if isinstance(entity, Binding):
        return commands.Queue.Bind(queue=entity.queue, exchange=entity.exchange, routing_key=entity.key, nowait=True)
    arguments: dict[str, Any] = dict(entity.arguments)
    if isinstance(entity, Queue):
        return commands.Queue.Declare(
            queue=entity.name, passive=passive, durable=True, nowait=True, arguments=arguments
        )
    return commands.Exchange.Declare(
        exchange=entity.name,
        exchange_type=entity.type.value,
        passive=passive,
        durable=True,
        nowait=True,
        arguments=arguments,
    )


async def _send(channel: Channel, frames: Sequence[Frame]) -> None:
    """Write frames to a channel in one piece, and wait until the broker has carried them out.

    The library's own calls cost a task for each frame, which a dispatcher's 39 bindings, made again every five seconds,
    would show as an eighth of its time when it is idle. A frame that is written after the broker refused one before it,
    and after the library has confirmed the channel's end, would end the connection: hence a single write.
    """
    *first, last = frames
    if isinstance(last, commands.Queue.Bind):
        last.nowait = False
        whole = [*first, last]
    else:
        whole = [*frames, commands.Channel.Flow(active=True)]
    if not channel.is_closed:
        await channel.write_queue.put(ChannelFrame.marshall(channel.number, whole))
    async with asyncio.timeout(CALL_SECONDS):
        await channel.create_task(channel.rpc_frames.get())


def _refused(channel: Channel, error: BaseException, *, only_check: bool) -> BaseException:
    """Return the error to raise for a failed declaration, found from the reason why its channel was closed."""
    error = _ended_by(channel, error)
    entity = entity_of(error)
    if only_check and isinstance(error, ChannelNotFoundEntity) and entity:
        return SetupError(
            "The broker lacks what this process needs and CODITECT_DECLARE is false",
            missing=entity,
            fix="coditect topology apply",
        )
    return refusal(error, entity=entity) or error


def entity_of(error: BaseException) -> str:
    """Return the name of the exchange or queue for which the broker refused a call; empty when the error names none."""
    if isinstance(error, CoditectError):
        return str(error.facts.get("entity") or error.facts.get("missing") or "")
    named = _NAMED.search(str(error))
    return named[1] if named else ""


def _ended_by(channel: Channel, error: BaseException) -> BaseException:
    """Return the error that closed a channel; when the channel has none, return the given error."""
    closing = channel.closing
    return (closing.exception() or error) if closing.done() and not closing.cancelled() else error


async def probe(connection: AbstractConnection, entity: Exchange | Queue) -> Probe:
    """Return whether the broker's exchange or queue is as given, missing or different in its arguments.

    First its existence is checked, then it is declared: a declaration with equal arguments changes nothing.
    """
    for passive in (True, False):
        channel = await open_channel(connection)
        try:
            await _send(channel, [_frame(entity, passive=passive)])
        except LOST as error:
            reason = _ended_by(channel, error)
            if is_away(reason):
                raise away(entity.name, reason) from error
            if isinstance(reason, ChannelNotFoundEntity):
                return MISSING
            if not isinstance(reason, ChannelPreconditionFailed):
                raise
            return Probe.differs(str(reason))
        finally:
            await close_quietly(channel)
    return SAME


async def stats(connection: AbstractConnection, queue: str) -> QueueStats | None:
    """Return a queue's number of ready messages and number of consumers; None when the queue does not exist."""
    looks = Looks()
    try:
        return await looks.stats(connection, queue)
    finally:
        await looks.close()


class Looks:
    """A reader of the message and consumer counts of many queues, which uses one channel for each round of reads.

    Only one read at a time is possible, since a missing queue costs the channel; the channel is closed at the end of a
    round.
    """

    def __init__(self) -> None:
        self.consumers: dict[str, int] = {}
        """The number of consumers of each queue that was read in this round."""
        self._channel: Channel | None = None
        self._connection: AbstractConnection | None = None

    async def stats(self, connection: AbstractConnection, queue: str) -> QueueStats | None:
        """Return a queue's number of ready messages and of consumers, by the shared channel; None without the queue."""
        channel = await self._opened(connection)
        try:
            reply = await channel.queue_declare(queue, passive=True, timeout=CALL_SECONDS)
        except ChannelNotFoundEntity as error:
            self._channel = None  # a frame on it, before the library calls it closed, would end the connection
            if is_away(error):
                raise away(queue, error) from error
            return None
        except ChannelLockedResource:
            self._channel = None
            return QueueStats(messages=0, consumers=1)  # exclusive to somebody: it is there and consumed
        except ValueError:
            return None  # the library writes no such name, so no queue of ours has it
        except BaseException:
            await self.close()  # an answer may still come on it
            raise
        self.consumers[queue] = reply.consumer_count or 0
        return QueueStats(messages=reply.message_count or 0, consumers=reply.consumer_count or 0)

    async def _opened(self, connection: AbstractConnection) -> Channel:
        if self._channel is None or self._channel.is_closed or self._connection is not connection:
            self._channel, self._connection = await open_channel(connection), connection
        return self._channel

    def end(self) -> tuple[Channel | None, Mapping[str, int]]:
        """End a round of reads; return its channel, if any, and the number of consumers of each queue that was read."""
        ended = self._channel, self.consumers
        self._channel, self.consumers = None, {}
        return ended

    async def close(self) -> None:
        """End the current round of reads and close its channel."""
        channel, _ = self.end()
        if channel is not None:
            await close_quietly(channel)


async def unbind(connection: AbstractConnection, binding: Binding) -> None:
    """Remove a binding; idempotent, also when its queue or exchange does not exist."""
    channel = await open_channel(connection)
    try:
        await channel.queue_unbind(binding.queue, binding.exchange, binding.key, timeout=CALL_SECONDS)
    except ChannelNotFoundEntity as error:
        if is_away(error):
            raise away(binding.queue, error) from error
    finally:
        await close_quietly(channel)


async def delete_queue(connection: AbstractConnection, queue: str, *, if_empty: bool, classic: bool) -> None:
    """Delete a queue if it exists; with `if_empty`, only when it has no ready messages.

    Quorum queues know no conditional delete, so the number of messages is read first.
    """
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
