"""The use case that lists the queues of the fleet, by capability and priority level."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coditect.broker.management import QueueRates
from coditect.broker.port import Broker, QueueStats
from coditect.model.capability import Priority
from coditect.wire import routing

NO_RATES: Mapping[str, QueueRates] = MappingProxyType({})


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
