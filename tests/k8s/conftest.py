"""The tests here need a Kubernetes control plane, which `make k8s-test` builds; no other target runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.k8s.cluster import Cluster, running_cluster

PROGRAMS = os.environ.get("CODITECT_KUBERNETES", "")
collect_ignore_glob = [] if PROGRAMS else ["test_*"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane with the CRDs, nodes that kwok plays, and volumes."""
    with running_cluster(Path(PROGRAMS), tmp_path_factory.mktemp("cluster")) as running:
        yield running
