"""The manifests that `coditect init` writes, on a real API server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.cluster import Cluster

pytestmark = pytest.mark.timeout(300)
NAMESPACE = "my-fleet"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def test_project_of_coditect_init_gets_ready_where_only_restricted_pods_may_run(
    cluster: Cluster, tmp_path: Path
) -> None:
    subprocess.run([sys.executable, "-m", "coditect", "init", NAMESPACE], cwd=tmp_path, check=True)
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}})

    folder = tmp_path / NAMESPACE / "k8s"
    cluster.kubectl("apply", "--server-side", "--validate=strict", "-n", NAMESPACE, "-k", str(folder))

    cluster.ready(NAMESPACE)
    pods = cluster.get("pods", "-n", NAMESPACE)
    assert len(pods) == 3
    [name] = {one["secretRef"]["name"] for pod in pods for one in pod["spec"]["containers"][0]["envFrom"]}
    assert set(cluster.get("secret", name, "-n", NAMESPACE)["data"]) == {"CODITECT_AMQP_URL", "CODITECT_REDIS_URL"}
