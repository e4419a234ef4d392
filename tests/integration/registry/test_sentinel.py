"""A registry under a sentinel: it is with the master, whichever that is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from coditect.errors import RegistryUnavailable
from coditect.local.probe import redis_version
from coditect.model.ids import AgentId
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import PrivateRedis, PrivateSentinel, running
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration

pytestmark = pytest.mark.servers
A = AgentId("reviewer-0000000a")


async def replication(server: PrivateRedis) -> Mapping[str, Any]:
    """What the server says of its part; asked over a connection of its own, since a change of parts closes all."""
    async with Redis.from_url(server.url, decode_responses=True) as looking:
        facts: dict[str, Any] = await looking.info("replication")
        return facts


@pytest.fixture
def master(tmp_path: Path) -> Iterator[PrivateRedis]:
    (tmp_path / "master").mkdir()
    with running(PrivateRedis(tmp_path / "master", "--repl-diskless-sync-delay", "0")) as server:
        yield server


@pytest.fixture
async def replica(master: PrivateRedis, tmp_path: Path) -> AsyncIterator[PrivateRedis]:
    """In step with the master."""
    (tmp_path / "replica").mkdir()
    with running(PrivateRedis(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port))) as server:

        async def in_step() -> bool:
            return bool((await replication(server)).get("master_link_status") == "up")

        await eventually(in_step)
        yield server


@pytest.fixture
async def sentinel(master: PrivateRedis, replica: PrivateRedis, tmp_path: Path) -> AsyncIterator[PrivateSentinel]:
    """It knows of the replica."""
    with running(PrivateSentinel(tmp_path, master)) as server:
        async with Redis.from_url(f"redis://127.0.0.1:{server.port}", decode_responses=True) as looking:

            async def knows() -> bool:
                return bool((await looking.info("sentinel"))["master0"]["slaves"] == 1)

            await eventually(knows)
        yield server


@pytest.mark.parametrize("end", [PrivateRedis.kill, PrivateRedis.stop])
async def test_registry_follows_its_master_over_a_failover(
    master: PrivateRedis, replica: PrivateRedis, sentinel: PrivateSentinel, end: Callable[[PrivateRedis], None]
) -> None:
    async with RedisRegistry(sentinel.url) as registry:
        await registry.register(make_registration(A), IDLE, lease_seconds=60)
        assert await registry.renew(A, IDLE, lease_seconds=60)
        before = await replication(replica)

        end(master)

        async def there_again() -> bool:
            try:
                await registry.register(make_registration(A), IDLE, lease_seconds=60)
                return await registry.get(A) is not None
            except RegistryUnavailable:
                return False

        await eventually(there_again)
        assert (before["role"], (await replication(replica))["role"]) == ("slave", "master")


async def test_closed_registry_leaves_no_connection_to_its_sentinel(sentinel: PrivateSentinel) -> None:
    async with Redis.from_url(f"redis://127.0.0.1:{sentinel.port}") as looking:

        async def connections() -> int:
            return int((await looking.info("clients"))["connected_clients"])

        before = await connections()
        async with RedisRegistry(sentinel.url) as registry:
            await registry.capabilities()
            during = await connections()

        assert during > before

        async def as_before() -> bool:
            return await connections() == before

        await eventually(as_before, seconds=10)


async def test_doctor_finds_the_master(sentinel: PrivateSentinel) -> None:
    assert (await redis_version(sentinel.url))[0].isdigit()
