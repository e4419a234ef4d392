"""Use cases for the exchanges and queues that the code needs: compare with the broker, create missing ones, export.

Every function raises InputError when a name is none of a capability. Without names the capabilities are those that
living agents offer; `note` is called when these are unknown. The bound of a capability's queues, `max_queued`, is known
from living agents alone: without any, its queues count as unbounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from coditect.broker.topology import Argument, Binding, Exchange, Queue, Topology, base_topology, capability_queues
from coditect.broker.topology_diff import TopologyPlan, apply_topology, export_definitions, make_plan
from coditect.errors import RegistryUnavailable
from coditect.operations.connections import Connections
from coditect.operations.fleet import Note, find_offers, known_capabilities, unnoted
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
    opened: Connections, named: Iterable[str], *, form: ExportForm, vhost: str, cluster: str, note: Note = unnoted
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


# The topology as objects of RabbitMQ's Messaging Topology Operator, for Kubernetes.
#
# The operator declares at the broker what the objects say. A deleted Queue object leaves its queue at the broker
# (`deletionPolicy: retain`), since a queue holds work.

_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
"""A name that Kubernetes takes: a DNS subdomain."""
_TYPE = "x-queue-type"


def export_manifests(topology: Topology, *, cluster: str, vhost: str = "/") -> dict[str, object]:
    """Return a Kubernetes List of an Exchange, Queue or Binding object for each entity of the topology.

    Args:
        cluster: the name of the RabbitmqCluster object, in the namespace that the list is applied to.
    """
    common = {"vhost": vhost, "rabbitmqClusterReference": {"name": cluster}}
    items = [
        *(_manifest("Exchange", exchange.name, common | _exchange(exchange)) for exchange in topology.exchanges),
        *(_manifest("Queue", queue.name, common | _queue(queue)) for queue in topology.queues),
        *(_manifest("Binding", _binding_name(binding), common | _binding(binding)) for binding in topology.bindings),
    ]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def object_name(name: str) -> str:
    """Return a name that Kubernetes accepts: the given one if valid, else an altered one that ends with a hash."""
    if _OBJECT_NAME.fullmatch(name):
        return name
    altered = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return f"{altered}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, object]:
    return {
        "apiVersion": "rabbitmq.com/v1beta1",
        "kind": kind,
        "metadata": {"name": object_name(name)},
        "spec": spec,
    }


def _exchange(exchange: Exchange) -> dict[str, Any]:
    return {"name": exchange.name, "type": exchange.type.value, "durable": True} | _arguments(exchange.arguments)


def _queue(queue: Queue) -> dict[str, Any]:
    # The operator makes the queue's type an argument by itself.
    arguments = {name: value for name, value in queue.arguments.items() if name != _TYPE}
    spec = {"name": queue.name, "type": queue.type.value, "durable": True, "deletionPolicy": "retain"}
    return spec | _arguments(arguments)


def _binding(binding: Binding) -> dict[str, Any]:
    return {
        "source": binding.exchange,
        "destination": binding.queue,
        "destinationType": "queue",
        "routingKey": binding.key,
    }


def _arguments(arguments: dict[str, Argument]) -> dict[str, Any]:
    return {"arguments": arguments} if arguments else {}


def _binding_name(binding: Binding) -> str:
    return ".".join(part for part in (binding.queue, binding.exchange, binding.key) if part)
