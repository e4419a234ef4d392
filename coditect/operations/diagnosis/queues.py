"""The use case that lists the queues of the fleet, by capability and level."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from coditect.broker.port import Broker
from coditect.model.capability import Priority
from coditect.wire import routing


@dataclass(frozen=True, slots=True)
class LevelQueue:
    """The queue of one level of a capability."""

    priority: Priority
    queue: str
    messages: int
    """The tasks that wait in it, without those that agents hold."""
    consumers: int
    """One or more for each agent with a free slot."""


@dataclass(frozen=True, slots=True)
class CapabilityQueues:
    """The queues of one capability: one for each level, and that of its dead letters."""

    capability: str
    levels: tuple[LevelQueue, ...]
    """The levels whose queue exists."""
    dead: int
    """The number of its dead letters."""


async def list_queues(broker: Broker, capabilities: tuple[str, ...]) -> list[CapabilityQueues]:
    """Return the queues of some capabilities, by name; read-only.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    return list(await asyncio.gather(*(_queues_of(broker, name) for name in sorted(capabilities))))


async def _queues_of(broker: Broker, capability: str) -> CapabilityQueues:
    names = [routing.task_queue(capability, level) for level in Priority]
    *found, dead = await asyncio.gather(*(broker.stats(name) for name in (*names, routing.dead_queue(capability))))
    levels = [
        LevelQueue(level, name, stats.messages, stats.consumers)
        for level, name, stats in zip(Priority, names, found, strict=True)
        if stats is not None
    ]
    return CapabilityQueues(capability, tuple(levels), 0 if dead is None else dead.messages)
