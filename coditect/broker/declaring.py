"""The declaration of exchanges, queues and bindings, with a count of the queues that did not exist before."""

from __future__ import annotations

from coditect.broker.port import Broker
from coditect.broker.topology import Topology


async def declare_missing(broker: Broker, topology: Topology) -> int:
    """Declare a topology (exchanges, queues, bindings), and return how many of its queues did not exist before.

    Raises:
        CoditectError: any error of `Broker.declare`.
    """
    missing = [queue.name for queue in topology.queues if await broker.stats(queue.name) is None]
    await broker.declare(topology)
    return len(missing)
