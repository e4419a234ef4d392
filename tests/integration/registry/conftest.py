from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import PrivateRedis, run_private_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRedis]:
    with run_private_redis(tmp_path) as running:
        yield running


@pytest.fixture
async def registry(server: PrivateRedis) -> AsyncIterator[RedisRegistry]:
    async with RedisRegistry(server.url) as opened:
        yield opened


@pytest.fixture
async def client(server: PrivateRedis) -> AsyncIterator[Redis]:
    """To look into the server and to disturb it."""
    async with Redis.from_url(server.url, decode_responses=True) as opened:
        yield opened
