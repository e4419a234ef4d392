"""The declaration of a topology, with a count of the queues that were missing."""

from __future__ import annotations

from coditect.broker.port import Broker
from coditect.broker.topology import Topology


async def declare_missing(broker: Broker, topology: Topology) -> int:
    """Declare all entities, and return how many of the queues were missing.

    Raises:
        CoditectError: any error of `Broker.declare`.
    """
    missing = [queue.name for queue in topology.queues if await broker.stats(queue.name) is None]
    await broker.declare(topology)
    return len(missing)
