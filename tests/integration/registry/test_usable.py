"""Whether `coditect doctor` finds a Redis usable, and what it advises where it is not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coditect.local.doctor import Check, check_server
from coditect.local.probe import usable_redis_version
from coditect.local.servers import free_ports
from tests.integration.registry.private_redis import PrivateRedis, running

pytestmark = pytest.mark.servers
WITHOUT_INFO = "~rq:* ~coditect:* +@all -@admin -@dangerous"
DOCUMENTED = f"{WITHOUT_INFO} +info"
"""The rights of a dispatcher's user in docs/task-graph.md."""


async def make_user(client: Redis, name: str, rights: str) -> None:
    words = ("ACL", "SETUSER", name, "on", ">secret", *rights.split())
    await client.execute_command(*words)  # type: ignore[no-untyped-call] # redis-py says no types here


async def found_at(url: str) -> Check:
    return await check_server("redis", url, usable_redis_version, (7, 0))


@pytest.fixture
def replica(server: PrivateRedis, tmp_path: Path) -> Iterator[PrivateRedis]:
    (tmp_path / "replica").mkdir()
    with running(PrivateRedis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port))) as started:
        yield started


async def test_user_with_the_documented_rights_is_enough(server: PrivateRedis, client: Redis) -> None:
    assert DOCUMENTED in Path("docs/task-graph.md").read_text(encoding="utf-8")
    await make_user(client, "coditect", DOCUMENTED)

    found = await found_at(server.url.replace("redis://", "redis://coditect:secret@"))

    assert found.ok, found
    assert await client.keys() == []
    assert re.fullmatch(r"version 7\.[\d.]+", found.detail)


async def test_user_who_may_not_ask_for_the_policy_of_evicting_learns_how_to_see_it(
    server: PrivateRedis, client: Redis
) -> None:
    await make_user(client, "coditect", WITHOUT_INFO)
    await client.config_set("maxmemory", "100mb")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    url = server.url.replace("redis://", "redis://coditect:secret@")

    unseen = await found_at(url)
    await make_user(client, "coditect", "+info")
    seen = await found_at(url)

    assert unseen.ok
    assert "cannot see whether Redis evicts keys: redis-cli acl setuser NAME +info" in unseen.detail
    assert (seen.ok, seen.detail) == (False, "Redis may evict keys of the registry and of RQ")


async def test_node_of_a_cluster_is_not_usable(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_ports(1)[0]))
    with running(PrivateRedis(tmp_path / "cluster", *options)) as node:
        found = await found_at(node.url)

    assert (found.ok, found.detail) == (False, "Redis is a node of a cluster, which shards its keys")


@pytest.mark.parametrize("parameter", ["", "?ssl_ca_certs={}/missing.pem"])
async def test_tls_that_fails_gets_advice_about_tls(tmp_path: Path, parameter: str) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *request.split()], check=True, capture_output=True)
    (port,) = free_ports(1)
    options = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    with running(PrivateRedis(tmp_path, *options, "--tls-ca-cert-file", str(certificate))):
        found = await found_at(f"rediss://127.0.0.1:{port}/0{parameter.format(tmp_path)}")

    assert (found.ok, found.detail) == (False, "TLS to the server fails")
    assert ("No such file" if parameter else "certificate") in found.fix.partition("TLS says")[2]


async def test_read_only_replica_is_not_usable(replica: PrivateRedis) -> None:
    found = await found_at(replica.url)

    assert (found.ok, found.detail) == (False, "Redis is a read-only replica")
    assert "name the master" in found.fix


async def test_redis_without_tls_or_with_all_its_clients_says_so(server: PrivateRedis, client: Redis) -> None:
    assert (
        await found_at(server.url.replace("redis:", "rediss:"))
    ).detail == "Redis answers at this address without TLS"

    await client.config_set("maxclients", 1)
    found = await found_at(server.url)

    assert (found.ok, found.detail) == (False, "Redis refuses connections")
    assert "max number of clients" in found.fix


async def test_redis_that_does_not_answer_is_to_be_started(server: PrivateRedis) -> None:
    server.kill()

    assert (await found_at(server.url)).fix.startswith("Start it")


@pytest.mark.parametrize(
    "rights",
    [
        "~other:* +@all",
        "~coditect:* +@all",
        "~rq:* +@all",
        "~* +@all -@scripting",
        "~* +@all -evalsha",
        "~* +@all -script",
        "~* +@all -@sortedset",
        "~* +@all -@list",
        "~* +@all -@set",
        "~* +@all -@hash",
        "~* +@all -pexpire",
        "~* +@all -time",
        "~* +@all -del",
    ],
)
async def test_user_without_all_of_the_rights_gets_the_rights(server: PrivateRedis, client: Redis, rights: str) -> None:
    await make_user(client, "other", rights)

    found = await found_at(server.url.replace("redis://", "redis://other:secret@"))

    assert not found.ok
    assert DOCUMENTED in found.fix


@pytest.mark.parametrize(
    ("configuration", "user", "detail", "fix"),
    [
        ({}, "other:hunter2", "", "check the user and password in CODITECT_REDIS_URL"),
        ({"requirepass": "secret"}, "", "", "CODITECT_REDIS_URL"),
        ({"maxmemory": "1"}, "", "Redis is full and takes no writes", "maxmemory"),
        (
            {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"},
            "",
            "Redis may evict keys of the registry and of RQ",
            "noeviction",
        ),
    ],
    ids=["wrong password", "no password", "full", "evicting"],
)
async def test_redis_that_is_not_usable_is_told_with_the_fix(
    server: PrivateRedis, client: Redis, configuration: dict[str, str], user: str, detail: str, fix: str
) -> None:
    await make_user(client, "other", DOCUMENTED)
    for name, value in configuration.items():
        await client.config_set(name, value)

    found = await found_at(server.url.replace("redis://", f"redis://{user}@" if user else "redis://"))

    assert (found.ok, detail in found.detail, fix in found.fix) == (False, True, True), found
    assert "hunter2" not in f"{found}"


async def test_whatever_redis_refuses_is_told_in_its_words(server: PrivateRedis) -> None:
    found = await found_at(server.url.replace("/0", "/99"))

    assert (found.ok, found.detail) == (False, "Redis refuses what the registry needs")
    assert "DB index is out of range" in found.fix
