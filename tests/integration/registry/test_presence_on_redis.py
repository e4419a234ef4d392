"""Redis killed, wiped or slow: the agent goes on, its registration is back within 2 s."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from coditect.agent.heartbeat import Heartbeat
from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import PrivateRedis
from tests.support import eventually, longest_stall
from tests.unit.registry.samples import IDLE, make_registration

pytestmark = pytest.mark.servers
A = AgentId("reviewer-0000000a")


async def found(registry: RedisRegistry) -> bool:
    try:
        return bool(await registry.find(Search(capability="code.review")))
    except RegistryUnavailable:
        return False


async def test_registration_is_back_after_a_redis_that_was_killed_and_came_back_empty(
    server: PrivateRedis, registry: RedisRegistry
) -> None:
    async with Heartbeat(registry, make_registration(), lambda: IDLE):
        server.kill()
        stall = await longest_stall(3)
        await asyncio.to_thread(server.start)

        await eventually(lambda: found(registry))

    assert stall < 0.3


async def test_registration_is_back_after_a_wipe(registry: RedisRegistry, client: Redis) -> None:
    async with Heartbeat(registry, make_registration(), lambda: IDLE):
        await client.flushall()

        await eventually(lambda: found(registry))


async def test_slow_redis_does_not_block_and_the_registration_is_back_after_it(
    registry: RedisRegistry, client: Redis
) -> None:
    async with Heartbeat(registry, make_registration(), lambda: IDLE) as presence:
        await client.client_pause(6_000)
        stall = await longest_stall(3)
        assert not presence.known

        await eventually(lambda: found(registry))
        await eventually(lambda: presence.known)

    assert stall < 0.3


async def test_agent_starts_and_ends_without_a_redis(server: PrivateRedis, registry: RedisRegistry) -> None:
    server.kill()
    started = time.monotonic()

    async with Heartbeat(registry, make_registration(), lambda: IDLE) as presence:
        known = presence.known

    assert not known
    assert time.monotonic() - started < 10


async def test_agent_that_ended_is_gone_from_redis_at_once(registry: RedisRegistry) -> None:
    async with Heartbeat(registry, make_registration(), lambda: IDLE):
        pass

    assert await registry.get(A) is None
