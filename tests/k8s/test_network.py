"""The NetworkPolicies of each overlay, as the API server has them, allow who must talk to whom and nothing else."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.network import Labels, Peer, reaches
from tests.servers import ROOT

Talk = set[tuple[str, str, int]]
COMPONENT = "app.kubernetes.io/component"
RABBITMQ = Peer("rabbitmq", {"app.kubernetes.io/name": "rabbitmq", COMPONENT: "rabbitmq"})
FOUNDATIONDB = Peer("foundationdb", {"foundationdb.org/fdb-cluster-name": "foundationdb"})
"""Pods that operators start, with the labels that these give them."""
NAMESPACES = ("elsewhere", "keda", "rabbitmq-system", "fdb-system", "monitoring", "gateway")
STRANGERS = tuple(Peer(name, {COMPONENT: "agent"}, name) for name in NAMESPACES)
"""Pods of other namespaces, which call themselves agents."""
PORTS = (5672, 15672, 6379, 4500, 9100, 25672, 15692, 8009)

FLEET: Talk = {
    ("agent", "rabbitmq", 5672), ("agent", "redis", 6379),
    ("dispatcher", "rabbitmq", 5672), ("dispatcher", "rabbitmq", 15672), ("dispatcher", "redis", 6379),
    ("api", "rabbitmq", 5672), ("api", "rabbitmq", 15672), ("api", "redis", 6379), ("gateway", "api", 8009),
}  # fmt: skip
OPERATORS: Talk = {
    ("rabbitmq", "rabbitmq", 25672), ("rabbitmq-system", "rabbitmq", 15672), ("keda", "rabbitmq", 15672),
    ("dispatcher", "foundationdb", 4500), ("foundationdb", "foundationdb", 4500), ("fdb-system", "foundationdb", 4500),
}  # fmt: skip
MONITORING: Talk = {
    ("monitoring", "rabbitmq", 15692), ("monitoring", "agent", 9100), ("monitoring", "dispatcher", 9100),
    ("monitoring", "api", 8009),
}  # fmt: skip
WANTED: dict[str, Talk] = {
    "coditect-dev": FLEET,
    "coditect-staging": FLEET | OPERATORS,
    "coditect": FLEET | OPERATORS | MONITORING,
}
OVERLAYS = {"coditect-dev": "dev", "coditect-staging": "staging", "coditect": "production"}


def _policies(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    cluster.apply(ROOT / "k8s" / "overlays" / OVERLAYS[namespace])
    return list(cluster.get("networkpolicies", "-n", namespace))


def _talk(cluster: Cluster, namespace: str, policies: list[dict[str, Any]]) -> Talk:
    """Return every connection that the policies allow, between the pods of the namespace and from and to strangers."""
    templates: list[Labels] = [
        one["spec"]["template"]["metadata"]["labels"] for one in cluster.get("deployments", "-n", namespace)
    ]
    mine = [RABBITMQ, FOUNDATIONDB, *(Peer(labels[COMPONENT], labels) for labels in templates)]
    return {
        (source.name, target.name, port)
        for source, target, port in product((*mine, *STRANGERS), (*mine, *STRANGERS), PORTS)
        if not (source.namespace and target.namespace) and reaches(policies, source, target, port)
    }


@pytest.mark.parametrize("namespace", WANTED)
def test_only_who_must_talk_to_each_other_may(namespace: str, cluster: Cluster) -> None:
    policies = _policies(cluster, namespace)

    assert _talk(cluster, namespace, policies) == WANTED[namespace]


def test_wrong_label_in_a_policy_is_found(cluster: Cluster) -> None:
    policies = _policies(cluster, "coditect-dev")
    labels = next(one for one in policies if one["metadata"]["name"] == "redis")["spec"]["podSelector"]["matchLabels"]
    labels["app.kubernetes.io/compnent"] = labels.pop(COMPONENT)

    lost = WANTED["coditect-dev"] - _talk(cluster, "coditect-dev", policies)

    assert lost == {("agent", "redis", 6379), ("dispatcher", "redis", 6379), ("api", "redis", 6379)}
