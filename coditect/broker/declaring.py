"""Declares what is missing, and says what that was."""

from __future__ import annotations

from coditect.broker.port import Broker
from coditect.broker.topology import Topology


async def declare_missing(broker: Broker, topology: Topology) -> int:
    """Declares everything; how many of the queues were not there. Raises: what `Broker.declare` raises."""
    missing = [queue.name for queue in topology.queues if await broker.stats(queue.name) is None]
    await broker.declare(topology)
    return len(missing)
