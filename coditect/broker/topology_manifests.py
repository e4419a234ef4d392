"""The topology as objects of RabbitMQ's Messaging Topology Operator, for Kubernetes.

The operator declares at the broker what the objects say. A deleted Queue object leaves its queue at the broker
(`deletionPolicy: retain`), since a queue holds work.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from coditect.broker.topology import Argument, Binding, Exchange, Queue, Topology

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
        *(_manifest("Exchange", one.name, common | _exchange(one)) for one in topology.exchanges),
        *(_manifest("Queue", one.name, common | _queue(one)) for one in topology.queues),
        *(_manifest("Binding", _binding_name(one), common | _binding(one)) for one in topology.bindings),
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
