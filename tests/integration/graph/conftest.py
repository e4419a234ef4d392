from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.graph.plane import Plane, Rq, plane
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import PrivateRedis, run_private_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """RQ's keys are the same for everybody, so the tests of a module share a server that is theirs alone."""
    with run_private_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[Redis]:
    with Redis.from_url(server.url) as opened:
        yield opened


@pytest.fixture
async def scene(server: PrivateRedis) -> AsyncIterator[Scene]:
    """A workflow whose shard, and so its queues, are its own."""
    async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph:
        yield Scene(graph)


@pytest.fixture
def stock(client: Redis, scene: Scene) -> Stock:
    """RQ itself, on the scene's queue."""
    return Stock(client, scene)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    """Shards have fixed numbers here, so that the tests cannot share a server."""
    with run_private_redis(tmp_path) as server:
        yield server


@pytest.fixture
async def hall(own_redis: PrivateRedis) -> AsyncIterator[Plane]:
    async with plane(own_redis.url) as running:
        yield running


@pytest.fixture
def rq(own_redis: PrivateRedis) -> Iterator[Rq]:
    with Redis.from_url(own_redis.url) as client:
        yield Rq(client)
