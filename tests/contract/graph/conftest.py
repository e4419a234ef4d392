from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chaos.simulated_task_graph import MemoryTaskGraph
from dispatcher.taskgraph.port import TaskGraph
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.registry.private_redis import PrivateRedis, run_private_redis


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """RQ's keys are the same for everybody, so the tests of a module share a server that is theirs alone."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with run_private_redis(folder) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
def graph_url(request: pytest.FixtureRequest) -> str:
    """Redis' address, empty for the in-memory twin; not a coroutine, since it may start the server."""
    return str(request.getfixturevalue("redis_of_module").url) if request.param == "redis" else ""


@pytest.fixture
async def graph(graph_url: str) -> AsyncIterator[TaskGraph]:
    async with (
        RedisTaskGraph(graph_url, worker="dispatcher-1", timeout_seconds=10)
        if graph_url
        else MemoryTaskGraph() as opened
    ):
        yield opened


@pytest.fixture
async def scene(graph: TaskGraph) -> Scene:
    return Scene(graph)
