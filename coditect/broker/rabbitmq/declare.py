"""The declaration and comparison of exchanges and queues, and other rare calls, on channels of their own.

A refusal closes the channel.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from aiormq.abc import AbstractConnection, ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity, ChannelPreconditionFailed
from pamqp import commands
from pamqp.base import Frame

from coditect.broker.port import MISSING, SAME, Probe, ProbeVerdict, QueueStats
from coditect.broker.rabbitmq.channels import (
    CHANNEL_CALL_SECONDS,
    LOST,
    away,
    close_quietly,
    give_up,
    is_away,
    open_channel,
    refusal,
)
from coditect.broker.topology import Binding, Exchange, Queue, Topology
from coditect.errors import CoditectError, NotFound, SetupError
from coditect.model.capability import Priority
from coditect.wire import routing

log = logging.getLogger(__name__)

DECLARED_AT_ONCE = 50
"""The number of declarations that are sent before the broker's answer is awaited."""
_NAMED = re.compile(r"(?:exchange|queue) '([^']*)'")
_PRIVATE = re.compile(
    r"(reply|agent|events|trigger|webhook|coditect\.epoch)\.|(unrouted|dead)\.notices$|control$|(control|results)\.\d+$"
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

    All entities are sent at once, with an answer awaited for every 50. A given `channel` is closed at the end.

    Raises:
        CoditectError: when the broker refuses an entity.
        Exception: any of `channels.LOST`, when the connection is lost.
    """
    frames = [_frame(entity, passive=passive) for entity, passive in _in_order(topology, only_check=only_check)]
    if not frames and channel is None:
        return
    if channel is None or channel.is_closed:
        channel = await open_channel(connection)
    try:
        for first in range(0, len(frames), DECLARED_AT_ONCE):
            await _send(channel, frames[first : first + DECLARED_AT_ONCE])
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
    async with asyncio.timeout(CHANNEL_CALL_SECONDS):
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
            return Probe(ProbeVerdict.DIFFERS, str(reason))
        finally:
            await close_quietly(channel)
    return SAME


async def stats(connection: AbstractConnection, queue: str) -> QueueStats | None:
    """Return a queue's number of ready messages and number of consumers; None when the queue does not exist."""
    reader = StatsReader()
    try:
        return await reader.stats(connection, queue)
    finally:
        await reader.close()


class StatsReader:
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
            reply = await channel.queue_declare(queue, passive=True, timeout=CHANNEL_CALL_SECONDS)
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
            self._channel = None
            await give_up(channel)  # an answer may still come on it
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
        await channel.queue_unbind(binding.queue, binding.exchange, binding.key, timeout=CHANNEL_CALL_SECONDS)
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
        await channel.queue_delete(queue, if_empty=if_empty and classic, timeout=CHANNEL_CALL_SECONDS)
    except ChannelPreconditionFailed:
        return  # something came meanwhile
    finally:
        await close_quietly(channel)


# What a process declared, and declares again when the broker lost it.
#
# A deleted exchange takes all its bindings with it, and a process that declares the exchange again has no bindings.
# AMQP sends no notice of this and lists no bindings. So each process that owns a binding makes it again: after a
# reconnect, when a publish comes back or finds no exchange, and every few seconds.

MEND_SECONDS = 0.5
"""The shortest time between two repeated declarations of all entities, made after publishes that found no queue."""
BINDING_MAKERS = 3
"""The average number of processes that make the binding of a shared queue in a round."""
SHARED_BINDING_ROUNDS = 4
"""The average number of rounds between a process's declarations of the binding of a retry-delay queue."""

Rarely = Callable[[Callable[[AbstractConnection], Awaitable[None]]], Awaitable[None]]
"""A function that makes a call on the open connection, and repeats the call after a loss of the connection."""


class Entities:
    """The exchanges, queues and bindings that one process declared at its broker."""

    def __init__(self, *, only_check: bool) -> None:
        """Start with nothing declared; if `only_check`, exchanges and shared queues are checked later, not declared.

        Private queues, those of one process or of the dispatchers, are declared all the same.
        """
        self._only_check = only_check
        self.own = Topology()
        """What the process declared, and not only remembered (`lazily`)."""
        self._common = Topology()
        self._refused: set[str] = set()
        """The exchanges and queues that the broker refused when they were last declared again."""
        self._consumers: dict[str, int] = {}
        """The number of consumers that each queue with a binding had when this process last looked at it."""
        self._mending = asyncio.Lock()
        self._mended_at = -MEND_SECONDS
        self._random = random.Random()  # noqa: S311 - who takes a turn, not a secret

    @property
    def topology(self) -> Topology:
        """The exchanges, queues and bindings that the process declares again when some are missing."""
        return self._common + self.own

    async def declare(self, connection: AbstractConnection, topology: Topology, *, lazily: bool) -> None:
        """Declare a topology and remember it for reconnects, as `Broker.declare`; with `lazily`, only remember it."""
        if lazily:
            self._common += topology
            return
        await self._make(connection, topology)
        self.own += topology.lasting

    def forget_queue(self, queue: str) -> None:
        """Forget a deleted queue and its bindings, so that a reconnect does not declare them again."""
        self.own = self.own.without({queue})
        self._common = self._common.without({queue})
        self._consumers.pop(queue, None)
        self._refused.discard(queue)

    def forget_binding(self, binding: Binding) -> None:
        """Forget a removed binding, so that a reconnect does not declare it again."""
        self.own = self.own.without_binding(binding)
        self._common = self._common.without_binding(binding)

    async def restore(self, connection: AbstractConnection) -> None:
        """Declare again, on a new connection, what the process declared before, except queues marked `once`.

        What it only remembered (`lazily`) is declared, too, if an exchange or queue turns out to be missing. An entity
        that the broker refuses, such as a queue whose node is down, is left to later rounds (`bind`).
        """
        await self._make_possible(connection, self.own)

    async def restore_queue(self, connection: AbstractConnection, queue: str) -> None:
        """Declare a queue and its bindings again if the process declared it before, and not as a queue marked `once`.

        A queue that the process only remembered (`lazily`) is not declared either.
        """
        lost = self.own.only_queue(queue)
        if lost.queues:
            await self._make(connection, lost)

    async def _make(self, connection: AbstractConnection, topology: Topology) -> None:
        try:
            await declare(connection, topology, only_check=self._only_check)
        except NotFound:
            if not topology.bindings or not (self.own.exchanges or self._common.exchanges):
                raise
            await declare(connection, self.topology + topology, only_check=self._only_check)

    async def _make_possible(
        self, connection: AbstractConnection, topology: Topology, channel: Channel | None = None
    ) -> None:
        """Declare a topology without the entities that the broker refuses; if one is missing, declare all others.

        Raises:
            Exception: any of `channels.LOST`, when the connection is lost.
        """
        refused: set[str] = set()
        left, whole = topology, False
        while left.exchanges or left.queues or left.bindings or channel is not None:
            try:
                await declare(connection, left, only_check=self._only_check, channel=channel)
                break
            except (CoditectError, ChannelLockedResource) as error:
                name, channel = entity_of(error), None
                if not whole and isinstance(error, NotFound) and self.topology.has(name):
                    left, whole = self.topology + topology, True
                elif left.mentions(name):
                    refused.add(name)
                    self._note(name, error)
                else:
                    raise
                left = left.without(refused)
        self._refused = {name for name in self._refused if name in refused or not topology.mentions(name)}

    def _note(self, name: str, error: BaseException) -> None:
        if name not in self._refused:
            self._refused.add(name)
            facts = {"entity": name, "reason": str(error)}
            log.warning("The broker refuses an exchange or queue; it is tried again alone", extra=facts)

    # -- for publishes that came back -----------------------------------------------------------------------

    async def mend(self, rarely: Rarely) -> None:
        """Declare again what this process declared, after an exchange or binding is found missing; at most every 0.5 s.

        Raises:
            Exception: any error of `declare`.
        """
        async with self._mending:
            if time.monotonic() - self._mended_at < MEND_SECONDS:
                return
            log.warning("An exchange or a binding is gone; what this process declared is made again")
            await rarely(lambda connection: self._make_possible(connection, self.topology))
            self._mended_at = time.monotonic()

    # -- every few seconds ----------------------------------------------------------------------------------

    async def bind(
        self, connection: AbstractConnection, consumers: Mapping[str, int], channel: Channel | None = None
    ) -> None:
        """Declare the process's bindings again, of queues shared with other processes only some, chosen at random.

        A repeated binding costs the broker about 0.25 ms, so processes that share a queue take turns, by chance: of up
        to three each makes a binding in every round, of more three on average. A given `channel` is closed.
        """
        bound = {binding.queue for binding in self.own.bindings}
        self._consumers |= {queue: count for queue, count in consumers.items() if queue in bound}
        bindings = tuple(binding for binding in self.own.bindings if self._random.random() < self._turn(binding.queue))
        await self._make_possible(connection, Topology(bindings=bindings), channel)

    def _turn(self, queue: str) -> float:
        """Return the probability with which this process makes a queue's bindings in a round.

        The processes that share a queue without consumers are known by the consumers of its capability's task queues.
        Nobody knows how many processes share the retry-delay queues, whose publishers notice a missing binding.
        """
        if is_private(queue) or queue == routing.UNROUTED_QUEUE:
            return 1.0
        if queue in self._consumers:
            return BINDING_MAKERS / max(1, self._consumers[queue])
        capability = routing.capability_of(queue)
        if capability is None:
            return 1 / SHARED_BINDING_ROUNDS
        queues = (routing.task_queue(capability, level) for level in Priority)
        return BINDING_MAKERS / max(1, *(self._consumers.get(task_queue, 1) for task_queue in queues))
