"""The NetworkPolicies of each overlay, as the API server has them, allow who must talk to whom and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml

from tests.k8s.cluster import Cluster
from tests.k8s.network import Labels, Manifest, Peer, Port, reaches
from tests.servers import ROOT

Talk = set[tuple[str, str, Port]]
COMPONENT = "app.kubernetes.io/component"
RABBITMQ = Peer("rabbitmq", {"app.kubernetes.io/name": "rabbitmq", COMPONENT: "rabbitmq"})
FOUNDATIONDB = Peer("foundationdb", {"foundationdb.org/fdb-cluster-name": "foundationdb"})
BACKUP = Peer("backup", {"app.kubernetes.io/name": "foundationdb-backup", COMPONENT: "backup"})
"""Pods that operators start, with the labels that these give them."""
JOB = yaml.safe_load((ROOT / "k8s" / "components" / "secrets" / "job.yaml").read_text())
"""It is gone a minute after its end, so it is not read from the API server."""
NAMESPACES = ("elsewhere", "keda", "rabbitmq-system", "fdb-system", "monitoring", "gateway", "kube-system")
STRANGERS = (
    *(Peer(name, {COMPONENT: "agent"}, name) for name in NAMESPACES),
    Peer("names", {"k8s-app": "kube-dns"}, "kube-system"),
    Peer("false names", {"k8s-app": "kube-dns"}, "elsewhere"),
)
"""Pods of other namespaces, which call themselves agents, and those that know the names of services, or say so."""
ANYWHERE = tuple((one.name, port) for one in STRANGERS for port in (443, 6443))
"""The API server, which is no pod and may be anywhere."""
PORTS: tuple[Port, ...] = (
    53, "53/UDP", 443, 6443, 5671, 5672, 15671, 15672, 6379, 6380, 4369, 4500, 4501, 9100, 25672, 15691, 15692, 8009,
    9090, 3000, 3100, 4317, 4318, 16686,
)  # fmt: skip


ROLES = ("agent", "dispatcher", "api")


def _fleet(amqp: Port, management: Port, redis: Port) -> Talk:
    asks = {(who, "rabbitmq", management) for who in ("dispatcher", "api")}
    both = {(who, *server) for who in ROLES for server in (("rabbitmq", amqp), ("redis", redis))}
    return asks | both | {("gateway", "api", 8009)}


SECRETS: Talk = {("secrets", *where) for where in ANYWHERE}
OPERATORS: Talk = {
    ("rabbitmq", "rabbitmq", 4369), ("rabbitmq", "rabbitmq", 25672),
    ("rabbitmq-system", "rabbitmq", 15671), ("keda", "rabbitmq", 15671),
    *((who, "foundationdb", port) for who in ("dispatcher", "foundationdb", "fdb-system") for port in (4500, 4501)),
    *((who, *where) for who in ("rabbitmq", "foundationdb") for where in ANYWHERE),
}  # fmt: skip
MONITORING: Talk = {
    ("monitoring", "rabbitmq", 15691), ("monitoring", "agent", 9100), ("monitoring", "dispatcher", 9100),
    ("monitoring", "api", 8009),
}  # fmt: skip
OBSERVABILITY: Talk = {
    ("prometheus", "agent", 9100), ("prometheus", "dispatcher", 9100), ("prometheus", "api", 8009),
    *((who, "collector", port) for who in ROLES for port in (4317, 4318)), ("collector", "jaeger", 4317),
    ("grafana", "prometheus", 9090), ("grafana", "loki", 3100), ("grafana", "jaeger", 16686),
}  # fmt: skip
COPIED: Talk = {
    ("backup", "foundationdb", 4500), ("backup", "foundationdb", 4501),
    *(("backup", stranger, port) for stranger, port in ANYWHERE if port == 443),
}  # fmt: skip
SECURED = _fleet(5671, 15671, 6380) | OPERATORS | OBSERVABILITY
WANTED: dict[str, Talk] = {
    "coditect-dev": _fleet(5672, 15672, 6379) | SECRETS,
    "coditect-staging": SECURED,
    "coditect": SECURED | MONITORING | COPIED,
}
OVERLAYS = {"coditect-dev": "dev", "coditect-staging": "staging", "coditect": "production"}


def _policies(cluster: Cluster, namespace: str) -> list[Manifest]:
    cluster.apply(ROOT / "k8s" / "overlays" / OVERLAYS[namespace])
    found = cluster.get("networkpolicies", "-n", namespace)
    return [{"name": one["metadata"]["name"], "spec": one["spec"]} for one in found]


def _pods(cluster: Cluster, namespace: str) -> list[Peer]:
    workloads = [*cluster.get("deployments", "-n", namespace), JOB]
    templates: list[Labels] = [one["spec"]["template"]["metadata"]["labels"] for one in workloads]
    return [RABBITMQ, FOUNDATIONDB, BACKUP, *(Peer(labels[COMPONENT], labels) for labels in templates)]


def _flows(pods: list[Peer], policies: list[Manifest]) -> list[tuple[Peer, Peer, Port]]:
    """Return every connection that the policies allow, between the pods of the namespace and from and to strangers."""
    return [
        (source, target, port)
        for source, target, port in product((*pods, *STRANGERS), (*pods, *STRANGERS), PORTS)
        if not (source.namespace and target.namespace) and reaches(policies, source, target, port)
    ]


def _talk(pods: list[Peer], policies: list[Manifest]) -> Talk:
    return {(source.name, target.name, port) for source, target, port in _flows(pods, policies)}


@pytest.mark.parametrize("namespace", WANTED)
def test_only_who_must_talk_to_each_other_may(namespace: str, cluster: Cluster) -> None:
    policies, pods = _policies(cluster, namespace), _pods(cluster, namespace)
    names = {(pod.name, "names", port) for pod in pods for port in (53, "53/UDP")}

    assert _talk(pods, policies) == WANTED[namespace] | names


def _with_less(whole: Any, key: str = "") -> Iterator[Any]:
    """Yield a document again and again, each time with one policy, rule, peer, port or label less, so that less talk.

    The only element of another list than that of rules stays: without it everything is allowed.
    """
    if isinstance(whole, dict):
        for name, part in whole.items():
            yield from (whole | {name: less} for less in _with_less(part, name))
    elif isinstance(whole, list) and key != "policyTypes":
        for place, part in enumerate(whole):
            before, behind = whole[:place], whole[place + 1 :]
            if len(whole) > 1 or key in ("ingress", "egress"):
                yield [*before, *behind]
            yield from ([*before, less, *behind] for less in _with_less(part))


@pytest.mark.parametrize("namespace", WANTED)
def test_nothing_that_a_policy_allows_is_lost_unseen(namespace: str, cluster: Cluster) -> None:
    policies, pods = _policies(cluster, namespace), _pods(cluster, namespace)
    flows = _flows(pods, policies)
    (closed,) = (one for one in policies if one["name"] == "deny-by-default")
    policies.remove(closed)

    unseen = [less for less in _with_less(policies) if all(reaches([closed, *less], *flow) for flow in flows)]

    assert unseen == []


def test_wrong_label_in_a_policy_is_found(cluster: Cluster) -> None:
    policies = _policies(cluster, "coditect-dev")
    labels = next(one for one in policies if one["name"] == "redis")["spec"]["podSelector"]["matchLabels"]
    labels["app.kubernetes.io/compnent"] = labels.pop(COMPONENT)

    lost = WANTED["coditect-dev"] - _talk(_pods(cluster, "coditect-dev"), policies)

    assert lost == {("agent", "redis", 6379), ("dispatcher", "redis", 6379), ("api", "redis", 6379)}
