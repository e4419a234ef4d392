"""Use cases for the exchanges and queues that the code needs: compare with the broker, create missing ones, export.

Every function raises InputError when a name is none of a capability. Without names the capabilities are those that
living agents offer; `note` is called when these are unknown. The bound of a capability's queues, `max_queued`, is known
from living agents alone: without any, its queues count as unbounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.broker.topology_diff import TopologyPlan, apply_topology, export_definitions, make_plan
from coditect.broker.topology_manifests import export_manifests
from coditect.errors import RegistryUnavailable
from coditect.operations.connections import Connections
from coditect.operations.fleet import Note, find_offers, known_capabilities
from coditect.registry.port import Search


class ExportForm(StrEnum):
    """The form of an exported topology: RabbitMQ's definitions, or Kubernetes objects."""

    DEFINITIONS = "definitions"
    K8S = "k8s"


async def plan_topology(opened: Connections, named: Iterable[str], *, note: Note) -> TopologyPlan:
    """Compare the broker's exchanges, queues and, if the management API is known, bindings with the code's; read-only.

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


async def export_topology(
    opened: Connections, named: Iterable[str], *, form: ExportForm, vhost: str, cluster: str, note: Note
) -> dict[str, object]:
    """Return the needed exchanges, queues and bindings, as RabbitMQ definitions or Kubernetes objects; create nothing.

    Args:
        cluster: the name of the RabbitmqCluster object that Kubernetes objects refer to.
    """
    topology = await _wanted(opened, named, note)
    if form is ExportForm.K8S:
        return export_manifests(topology, cluster=cluster, vhost=vhost)
    return export_definitions(topology, vhost=vhost)


async def _wanted(opened: Connections, named: Iterable[str], note: Note) -> Topology:
    whole = base_topology()
    names = await known_capabilities(opened, named, note=note)
    bounds = await _bounds(opened) if names else {}
    for name in names:
        whole += capability_queues(name, max_queued=bounds.get(name))
    return whole


async def _bounds(opened: Connections) -> dict[str, int | None]:
    """Return the queue limit (`max_queued`) of each capability that living agents offer; empty without a registry."""
    try:
        return {one.spec.name: one.spec.max_queued for one in await find_offers(opened, Search())}
    except RegistryUnavailable:
        return {}
