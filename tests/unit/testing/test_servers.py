"""Which servers a run takes, and how containers are configured; no engine is needed for either."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coditect.errors import SetupError
from coditect.testing import servers
from coditect.testing.servers import AMQP, REDIS, WANTED, Kind, ServerUrls, describe, running_servers, select
from tests import foundationdb
from tests.servers import ROOT

NAMED = {WANTED: "named", AMQP: "amqp://a:1", REDIS: "redis://b:2/0"}
NOBODY = "unix:///nowhere/docker.sock"


@pytest.mark.parametrize(
    ("wanted", "answers", "kind"),
    [
        ({}, True, Kind.PRIVATE),
        ({WANTED: ""}, True, Kind.PRIVATE),
        ({WANTED: "private"}, True, Kind.PRIVATE),
        ({WANTED: "containers"}, True, Kind.CONTAINERS),
        ({WANTED: "containers"}, False, Kind.PRIVATE),
        (NAMED, True, Kind.NAMED),
    ],
)
def test_containers_are_taken_where_they_are_wanted_and_docker_answers(
    wanted: dict[str, str], answers: bool, kind: Kind
) -> None:
    assert select(wanted, docker_answers=lambda: answers) is kind


def test_servers_that_there_are_not_are_refused_and_the_fix_named() -> None:
    with pytest.raises(SetupError) as refused:
        select({WANTED: "podman"})

    assert "CODITECT_TEST_SERVERS=private, containers, named" in str(refused.value.facts["fix"])
    with pytest.raises(SetupError, match="no addresses"):
        select({WANTED: "named", AMQP: "amqp://a:1"})


def test_docker_that_is_not_there_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NOBODY)

    assert not servers.docker_answers()


def test_run_says_which_servers_it_takes_and_why() -> None:
    wanted = {**os.environ, WANTED: "containers"}

    assert describe(NAMED) == "those of CODITECT_AMQP_URL and CODITECT_REDIS_URL"
    assert describe(wanted, docker_answers=lambda: True) == "containers of rabbitmq:4 and redis:7"
    assert describe(wanted, docker_answers=lambda: False).startswith("private RabbitMQ ")
    assert describe(wanted, docker_answers=lambda: False).endswith(", because no Docker engine answers")
    assert "Docker" not in describe({"PATH": ""})


def test_named_servers_and_clusters_are_taken_and_nothing_is_started() -> None:
    with running_servers(environ=NAMED) as found:
        assert found.environment == {"CODITECT_AMQP_URL": "amqp://a:1", "CODITECT_REDIS_URL": "redis://b:2/0"}

    with running_servers(foundationdb=True, environ={**NAMED, "FDB_CLUSTER_FILE": "/etc/fdb.cluster"}) as found:
        assert found == ServerUrls(NAMED[AMQP], NAMED[REDIS], "fdb:/etc/fdb.cluster")
        assert found.environment["CODITECT_STORE_URL"] == "fdb:/etc/fdb.cluster"


def test_command_on_a_store_in_a_container_is_told_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def container(server: servers.ContainerServer) -> Iterator[str]:
        yield f"{server.image}:{server.port}"

    monkeypatch.delenv("FDB_CLUSTER_FILE", raising=False)
    monkeypatch.setattr(servers, "running_container", container)
    for module in (servers, foundationdb):
        monkeypatch.setattr(module, "select", lambda environ: Kind.CONTAINERS)
    command = ["sh", "-c", f"cat $FDB_CLUSTER_FILE > {tmp_path}/told; exit 3"]

    assert foundationdb.main(["--there"]) == 0
    assert foundationdb.main(["--processes", "3", "--", *command]) == 3
    assert (tmp_path / "told").read_text().startswith("docker:docker@foundationdb/foundationdb:7.3.79:")


def test_make_test_of_containers_tests_the_store_on_one_too(tmp_path: Path) -> None:
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(f'#!/bin/sh\necho "$CODITECT_TEST_SERVERS: $*" >> {calls}\n[ "$3" != --private ]\n')
    python.chmod(0o755)

    subprocess.run(["make", "-o", "setup", "test", "SERVERS=containers", f"PYTHON={python}"], cwd=ROOT, check=True)

    told = calls.read_text()
    assert f"\ncontainers: -m tests.foundationdb --processes 3 -- {python} -m pytest " in told
    assert "benchmarks.store" in told
    assert "-m chaos" not in told  # it kills processes of a private one


def test_containers_say_themselves_when_they_serve_and_on_which_port() -> None:
    broker = servers.rabbitmq_container("rabbitmq:4", "secret")
    registry = servers.redis_container("redis:7", "secret")

    assert (broker.port, broker.environment["RABBITMQ_DEFAULT_PASS"], broker.host_network) == (5672, "secret", False)
    assert (registry.port, registry.command) == (6379, "redis-server --requirepass secret")
    assert (broker.ready[0], registry.ready[0]) == ("rabbitmq-diagnostics", "redis-cli")

    cluster = servers.foundationdb_container("fdb:7", 4689)

    assert cluster.host_network
    assert (cluster.port, cluster.environment) == (4689, {"FDB_NETWORKING_MODE": "host", "FDB_PORT": "4689"})
    assert "configure new" in cluster.ready[-1]
