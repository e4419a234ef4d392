"""What every task graph promises when it lost everything, or does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, TaskGraphUnavailable
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.registry.private_redis import run_private_redis

Act = Callable[[], Awaitable[object]]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
async def wipeable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Act]]:
    if request.param == "memory":
        memory = MemoryTaskGraph()

        async def wipe() -> None:
            memory.wipe()

        yield Scene(memory), wipe
        return
    with run_private_redis(tmp_path) as server:
        async with (
            RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph,
            Redis.from_url(server.url) as client,
        ):

            async def flush() -> None:
                await client.flushall()
                await client.script_flush()

            yield Scene(graph), flush


async def test_wiped_graph_is_noticed_and_built_anew_from_what_the_ledger_has(wipeable: tuple[Scene, Act]) -> None:
    scene, wipe = wipeable
    await scene.create(scene.job("a"), scene.job("b", "a"), scene.job("c", "b"))
    await scene.tell(JobState.FINISHED, "a")
    await scene.graph.remember(scene.shard)

    await wipe()

    assert not await scene.graph.known([scene.shard])
    assert await scene.counts() == {}
    assert await scene.adopt() == []
    await scene.tell(JobState.FINISHED, "b")

    ledger = [scene.job("a", state=JobState.FINISHED), scene.job("b", "a", state=JobState.STARTED), scene.job("c", "b")]
    difference = await scene.graph.difference(ledger)
    await scene.graph.create(difference.missing)
    await scene.graph.remember(scene.shard)

    assert difference.missing == tuple(ledger)
    assert await scene.graph.known([scene.shard])
    assert await scene.counts() == {"finished": 1, "started": 1, "deferred": 1}
    await scene.tell(JobState.FINISHED, "b")
    assert await scene.adopt() == ["c"]


@pytest.fixture(params=["memory", pytest.param("killed", marks=pytest.mark.servers)])
async def silent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Act]]:
    """A graph that does not answer, and what makes it answer again."""
    if request.param == "memory":
        memory = MemoryTaskGraph()
        memory.failing = True

        async def answer() -> None:
            memory.failing = False

        yield Scene(memory), answer
        return
    with run_private_redis(tmp_path) as server:
        server.kill()
        async with RedisTaskGraph(server.url, worker="dispatcher-1") as graph:

            async def start() -> None:
                server.start()

            yield Scene(graph), start


async def test_every_call_of_a_silent_graph_fails_as_retryable_and_works_again_by_itself(
    silent: tuple[Scene, Act],
) -> None:
    scene, answer = silent
    calls: list[Act] = [
        lambda: scene.create(scene.job("a")),
        lambda: scene.tell(JobState.FINISHED, "a"),
        scene.adopt,
        lambda: scene.graph.remove(scene.workflow, ["a"]),
        scene.requests,
        lambda: scene.graph.difference([scene.job("a")]),
        lambda: scene.graph.remember(scene.shard),
        lambda: scene.graph.known([scene.shard]),
    ]

    for call in calls:
        with pytest.raises(TaskGraphUnavailable) as raised:
            await call()
        assert raised.value.retryable

    await answer()
    await scene.create(scene.job("a"))
    assert await scene.adopt() == ["a"]
