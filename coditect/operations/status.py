"""The status of the queues and of the control plane: its shards, and each dispatcher's counts of refused work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from coditect.aio.clock import SystemClock
from coditect.broker.management import QueueRates
from coditect.broker.port import Broker, QueueStats
from coditect.errors import ControlPlaneRequired, Retryable
from coditect.messaging.control_plane import ControlPlane, asking
from coditect.model.capability import Priority
from coditect.wire import routing
from coditect.wire.control import Verb

NO_RATES: Mapping[str, QueueRates] = {}


@dataclass(frozen=True, slots=True)
class LevelQueue:
    """The queue of a capability's tasks of one priority: its length, its consumers, and message rates where known."""

    priority: Priority
    queue: str
    messages: int
    """The tasks that wait in it, without those that agents hold."""
    consumers: int
    """One or more for each agent with a free slot."""
    published_per_second: float | None
    """What comes in, as the broker samples it; None without its management API."""
    delivered_per_second: float | None
    oldest_ms: int | None
    """When the oldest waiting task was published, in ms since the epoch; None where the broker does not tell."""


@dataclass(frozen=True, slots=True)
class CapabilityQueues:
    """The existing task queues of one capability, at most one for each priority, and the number of its dead letters."""

    capability: str
    levels: tuple[LevelQueue, ...]
    """The levels whose queue exists."""
    dead: int
    """The number of its dead letters."""


async def list_queues(
    broker: Broker, capabilities: tuple[str, ...], rates: Mapping[str, QueueRates] = NO_RATES
) -> list[CapabilityQueues]:
    """Return the queues of some capabilities, sorted by name, with their message rates where known; read-only.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    return list(await asyncio.gather(*(_queues_of(broker, name, rates) for name in sorted(capabilities))))


async def _queues_of(broker: Broker, capability: str, rates: Mapping[str, QueueRates]) -> CapabilityQueues:
    names = [routing.task_queue(capability, level) for level in Priority]
    *found, dead = await asyncio.gather(*(broker.stats(name) for name in (*names, routing.dead_queue(capability))))
    levels = [
        _level(level, name, stats, rates.get(name))
        for level, name, stats in zip(Priority, names, found, strict=True)
        if stats is not None
    ]
    return CapabilityQueues(capability, tuple(levels), 0 if dead is None else dead.messages)


def _level(level: Priority, queue: str, stats: QueueStats, rate: QueueRates | None) -> LevelQueue:
    if rate is None:
        return LevelQueue(level, queue, stats.messages, stats.consumers, None, None, None)
    oldest_ms = rate.oldest_ms if stats.messages else None
    moving = (rate.published_per_second, rate.delivered_per_second)
    return LevelQueue(level, queue, stats.messages, stats.consumers, *moving, oldest_ms)


async def has_dispatcher(broker: Broker) -> bool:
    """Tell whether a dispatcher consumes the requests to the control plane now."""
    control = await broker.stats(routing.CONTROL_QUEUE)
    return control is not None and control.consumers > 0


OWN_SECONDS = 3.0
"""How long each dispatcher may take to answer with its own counts."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """The status of one shard by the ledger: owner, epoch, and counts of its unended workflows and nodes under way."""

    shard: int
    owner: str | None
    """The dispatcher that owns the shard; None when no living dispatcher owns it."""
    epoch: int
    workflows: int
    """The number of workflows that have not ended."""
    under_way: int
    """The number of nodes that are published or running."""


@dataclass(frozen=True, slots=True)
class RefusalCounts:
    """A dispatcher's counts of refused or lost work and restarted loops since its start, and of its nodes under way."""

    under_way: int
    """The number of nodes of its shards that are published or running now."""
    refused: int
    """Commits refused because another dispatcher owned the shard by then."""
    late: int
    """Results refused because their fence was outdated."""
    strange: int
    """Results of nodes that the ledger does not have."""
    unrecorded: int
    """Results that the ledger could not store."""
    dropped: int
    """Unrouted tasks whose publishers get no answer: a flood dropped the copies from which answers are made."""
    restarts: int
    """Background loops of the process that died and were started again."""
    newer: int
    """Nodes of its shards that were written by a newer dispatcher, which alone may handle them."""
    recovery_ms: int = 0
    """The longest time from a lost agent's last sign of life until the workflow tasks that it ran were with others.

    0 before the first loss of an agent that ran any.
    """
    freed_ms: int = 0
    """The longest time from a lost agent's last sign of life until its locks were released; 0 before the first."""


COUNTS = tuple(field.name for field in fields(RefusalCounts))


@dataclass(frozen=True, slots=True)
class DispatcherStatus:
    """The status of a living dispatcher: its shards and its counts of refused work."""

    owner: str
    shards: tuple[int, ...]
    counts: RefusalCounts | None
    """The dispatcher's own counts; None when it did not answer, or owns no shard by which to address it."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The status of the whole control plane: dispatchers and shards."""

    dispatchers: tuple[DispatcherStatus, ...]
    shards: tuple[ShardStatus, ...]


async def cluster_status(broker: Broker) -> ClusterStatus:
    """Ask the control plane for its shards, and each dispatcher for its counts; read-only.

    Raises:
        ControlPlaneRequired: when no dispatcher answers.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    clock = SystemClock()
    async with asking(broker, clock, name=f"status-{clock.new_id()}") as control:
        status = await control.ask(Verb.STATUS, {})
        shards = tuple(_shard(row) for row in status["shards"])
        told = dict([_counted(status["answered_by"])])
        asked = {one.owner: one.shard for one in shards if one.owner is not None and one.owner not in told}
        answers = await asyncio.gather(*(_ask(control, shard) for shard in asked.values()))
    told |= dict(_counted(answer) for answer in answers if answer is not None)
    owned = {owner: tuple(one.shard for one in shards if one.owner == owner) for owner in status["dispatchers"]}
    return ClusterStatus(tuple(DispatcherStatus(owner, owned[owner], told.get(owner)) for owner in owned), shards)


async def _ask(control: ControlPlane, shard: int) -> Mapping[str, Any] | None:
    """Ask a shard's owner for its counts of refused work and running nodes; None when no answer comes in time."""
    try:
        answer = await control.ask(Verb.STATUS, {"shard": shard}, timeout=OWN_SECONDS)
    except (ControlPlaneRequired, Retryable):
        return None
    figures: Mapping[str, Any] = answer["answered_by"]
    return figures


def _shard(row: Mapping[str, Any]) -> ShardStatus:
    return ShardStatus(row["shard"], row["owner"], row["epoch"], row["workflows"], row["under_way"])


def _counted(figures: Mapping[str, Any]) -> tuple[str, RefusalCounts]:
    return figures["owner"], RefusalCounts(*(int(figures.get(name, 0)) for name in COUNTS))
