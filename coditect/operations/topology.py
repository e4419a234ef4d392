"""Use cases for the exchanges and queues of fleet and capabilities: compare with the broker, create, export.

Every function raises InputError when a name is none of a capability. Without names the capabilities are those that
living agents offer; `note` is called when these are unknown.
"""

from __future__ import annotations

from collections.abc import Iterable

from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.broker.topology_diff import TopologyPlan, apply_topology, export_definitions, make_plan
from coditect.operations.connections import Connections
from coditect.operations.fleet import Note, known_capabilities


async def plan_topology(opened: Connections, named: Iterable[str], *, note: Note) -> TopologyPlan:
    """Compare the exchanges and queues of the broker with those of the code; read-only.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
        ManagementUnavailable: when the management API, whose address is set, does not answer; retryable.
    """
    topology = await _wanted(opened, named, note)
    async with opened.broker() as broker:
        return await make_plan(broker, topology, bound=await opened.bindings())


async def create_topology(opened: Connections, named: Iterable[str], *, note: Note) -> TopologyPlan:
    """Create missing exchanges, queues and bindings; leave those that differ alone. Idempotent.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    topology = await _wanted(opened, named, note)
    async with opened.broker() as broker:
        return await apply_topology(broker, topology)


async def export_topology(opened: Connections, named: Iterable[str], *, vhost: str, note: Note) -> dict[str, object]:
    """Return the topology as a RabbitMQ definitions document, without the broker; with names also without Redis."""
    return export_definitions(await _wanted(opened, named, note), vhost=vhost)


async def _wanted(opened: Connections, named: Iterable[str], note: Note) -> Topology:
    whole = base_topology()
    for name in await known_capabilities(opened, named, note=note):
        whole += capability_queues(name)
    return whole
