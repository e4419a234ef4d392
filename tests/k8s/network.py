"""NetworkPolicies as the specification reads them: who may open a connection to whom.

A policy selects pods by labels; a direction of a selected pod is closed, except for what some policy that selects it
allows. A connection needs both ends open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]
Port = int | str
"""A port of TCP, or another protocol's with its name: `53/UDP`."""
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod of the policies' namespace, or of another whose name is given."""

    name: str
    labels: Labels
    namespace: str | None = None


def reaches(policies: Iterable[Manifest], source: Peer, target: Peer, port: Port) -> bool:
    """Whether the policies let the source open a connection to the target's port."""
    known = list(policies)
    return _open(known, "Egress", source, target, port) and _open(known, "Ingress", target, source, port)


def _open(policies: list[Manifest], direction: str, pod: Peer, peer: Peer, port: Port) -> bool:
    """Whether one direction of a pod is open for a peer; a pod of another namespace has no policies here."""
    if pod.namespace is not None:
        return True
    mine = [one["spec"] for one in policies if direction in one["spec"]["policyTypes"]]
    selecting = [spec for spec in mine if _selects(spec["podSelector"], pod.labels)]
    rules = [rule for spec in selecting for rule in spec.get(direction.lower(), ())]
    return not selecting or any(_allows(rule, direction, peer, port) for rule in rules)


def _allows(rule: Manifest, direction: str, peer: Peer, port: Port) -> bool:
    peers = rule.get("to" if direction == "Egress" else "from")
    ports = rule.get("ports")
    return (not peers or any(_is(one, peer) for one in peers)) and (not ports or port in [_port(one) for one in ports])


def _port(one: Manifest) -> Port:
    number: int = one["port"]
    protocol = one.get("protocol", "TCP")
    return number if protocol == "TCP" else f"{number}/{protocol}"


def _is(selector: Manifest, peer: Peer) -> bool:
    """Whether a rule's peer is this one; without a namespace selector it is of the policies' own namespace."""
    if "ipBlock" in selector:
        return False
    if "namespaceSelector" in selector:
        namespace = {"kubernetes.io/metadata.name": peer.namespace or ""}
        return _selects(selector["namespaceSelector"], namespace) and _selects(
            selector.get("podSelector", {}), peer.labels
        )
    return peer.namespace is None and _selects(selector["podSelector"], peer.labels)


def _selects(selector: Manifest, labels: Labels) -> bool:
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions), expressions
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )
