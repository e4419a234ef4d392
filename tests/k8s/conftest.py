"""The tests here need a Kubernetes control plane, which `make k8s-test` builds; no other target runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.cluster import Cluster, running_cluster

PROGRAMS = os.environ.get("CODITECT_KUBERNETES", "")
collect_ignore_glob = [] if PROGRAMS else ["test_*"]
ABSENT = {
    "containers": "the pods of dev ran as processes under bubblewrap, and no image was pulled",
    "RabbitMQ's and FoundationDB's operators": "their objects were checked against k8s/crds, and nobody acted on them",
    "Prometheus' operator": "its objects were checked against its own definitions, and nobody acted on them",
    "cert-manager": "its objects were checked against its own definitions, and the tests made the certificates",
    "a gateway": "its route was checked against the Gateway API's own definitions, and nobody answered at its name",
    "KEDA's controller": "the test made the HorizontalPodAutoscaler, and served its metric",
    "a network plug-in": "the NetworkPolicies were read as specified, and no packet was dropped",
}
"""What a cluster has and this one has not, and what was done instead; docs/kubernetes.md says it, too."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what a passed run does not prove."""
    if PROGRAMS:
        terminalreporter.section("not had, so not proven")
        for what, instead in ABSENT.items():
            terminalreporter.line(f"{what}: {instead}")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane with the CRDs, nodes that kwok plays, and volumes."""
    with running_cluster(Path(PROGRAMS), tmp_path_factory.mktemp("cluster")) as running:
        yield running
