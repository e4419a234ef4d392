"""What every registry promises when it lost everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coditect.model.ids import AgentId
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Registry, Search
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import run_private_redis
from tests.unit.registry.samples import IDLE, make_registration

Wipe = Callable[[], Awaitable[object]]
A = AgentId("reviewer-0000000a")
B = AgentId("writer-0000000b")


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
async def wipeable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Registry, Wipe]]:
    if request.param == "memory":
        memory = MemoryRegistry()

        async def wipe() -> None:
            memory.wipe()

        yield memory, wipe
        return
    with run_private_redis(tmp_path) as server:
        async with RedisRegistry(server.url) as registry, Redis.from_url(server.url) as client:

            async def flush() -> None:
                await client.flushall()
                await client.script_flush()

            yield registry, flush


async def test_wiped_registry_is_empty_and_takes_registrations_again(wipeable: tuple[Registry, Wipe]) -> None:
    registry, wipe = wipeable
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    await registry.mark_start("task-1", A, keep_seconds=60)

    await wipe()

    assert not await registry.renew(A, IDLE, lease_seconds=30)
    assert await registry.find(Search()) == ()
    assert await registry.capabilities() == frozenset()
    await registry.register(make_registration(), IDLE, lease_seconds=30)
    assert await registry.renew(A, IDLE, lease_seconds=30)
    assert len(await registry.find(Search(capability="code.review"))) == 1
    assert await registry.next_turn("code.review") == 1
    assert await registry.mark_start("task-1", B, keep_seconds=60) is None
