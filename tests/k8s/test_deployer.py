"""The deployer's target of Kubernetes on a real API server: rolled out, not well for want of room, and undone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agents.deployment.targets import KubernetesSpec, KubernetesTarget
from coditect.errors import TaskFailed
from tests.k8s.cluster import Cluster, until

pytestmark = pytest.mark.timeout(300)
NAMESPACE, LABELS = "live", {"app": "shop"}
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def deployment(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> KubernetesTarget:
    """A Deployment of two pods, of which at most one may be missing."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.folder / "kubeconfig"))
    monkeypatch.setenv("PATH", f"{cluster.programs}:{os.environ['PATH']}")
    pods = {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "shop", "image": "registry/shop:old"}]}}
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    cluster.create(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "shop", "namespace": NAMESPACE},
            "spec": {"replicas": 2, "strategy": surge, "selector": {"matchLabels": LABELS}, "template": pods},
        },
    )
    cluster.ready(NAMESPACE)
    return KubernetesTarget(
        KubernetesSpec(deployment="shop", namespace=NAMESPACE, image="registry/shop", within_seconds=60)
    )


def test_release_is_rolled_out_and_one_that_gets_no_pods_is_undone(
    cluster: Cluster, deployment: KubernetesTarget, tmp_path: Path
) -> None:
    before = [deployment.release(FIRST, tmp_path, "task-1") for _ in range(2)]
    deployment.probe(FIRST)
    full: Any = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": NAMESPACE}}
    cluster.create({**full, "spec": {"hard": {"pods": "2"}}})
    until(lambda: _pods(cluster) == "2" == _used(cluster), "the quota counts two pods")

    second = deployment.release(SECOND, tmp_path, "task-2")
    hasty = KubernetesTarget(deployment.spec.model_copy(update={"within_seconds": 5}))
    with pytest.raises(TaskFailed, match="exceeded quota"):
        hasty.probe(SECOND)
    undone = [deployment.roll_back(SECOND, FIRST) for _ in range(2)]

    assert (before, second, undone) == (["old", "old"], FIRST, [FIRST, FIRST])
    [container] = cluster.get("deployment", "shop", "-n", NAMESPACE)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"registry/shop:{FIRST}"
    deployment.probe(FIRST)


def _pods(cluster: Cluster) -> str:
    return str(len(cluster.get("pods", "-n", NAMESPACE)))


def _used(cluster: Cluster) -> str:
    used = cluster.get("resourcequota", "full", "-n", NAMESPACE).get("status", {}).get("used", {})
    return str(used.get("pods"))
