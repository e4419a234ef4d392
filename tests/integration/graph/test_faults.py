"""Redis frozen, killed and restarted under the task graph, and the dispatcher killed between its steps."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from dispatcher.taskgraph.port import JobState, TaskGraphUnavailable
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.integration.registry.private_redis import PrivateRedis, run_private_redis

pytestmark = pytest.mark.servers


@pytest.fixture
async def frail(tmp_path: Path) -> AsyncIterator[tuple[PrivateRedis, Scene]]:
    """A Redis of the test's own, to be frozen."""
    with run_private_redis(tmp_path) as server:
        async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=0.3) as graph:
            yield server, Scene(graph)


async def test_frozen_redis_holds_up_neither_the_call_nor_the_loop(frail: tuple[PrivateRedis, Scene]) -> None:
    server, scene = frail
    async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=30) as unhurried:
        await unhurried.create([scene.job("a")])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    (process,) = [one for one in psutil.Process(os.getpid()).children() if f":{server.port}" in " ".join(one.cmdline())]
    process.send_signal(signal.SIGSTOP)
    try:
        calls: list[Callable[[], Awaitable[object]]] = [
            scene.adopt,
            lambda: scene.tell(JobState.FINISHED, "a"),
            lambda: scene.create(*[scene.job(f"n{number}") for number in range(2_000)]),
        ]
        for call in calls:
            before = ticks
            with pytest.raises(TaskGraphUnavailable):
                async with asyncio.timeout(5):
                    await call()
            assert ticks > before
    finally:
        process.send_signal(signal.SIGCONT)
        ticking.cancel()

    # what was sent may have been done after all, and may be repeated
    async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=30) as scene.graph:
        await scene.create(scene.job("a"), *[scene.job(f"n{number}") for number in range(2_000)])
        await scene.graph.tell([scene.change("a", JobState.FINISHED)])
        counts = await scene.counts()
    assert counts.pop("finished") == 1
    assert sum(counts.values()) == 2_000


async def test_job_that_was_adopted_by_a_killed_dispatcher_is_put_back_by_the_next(server: PrivateRedis) -> None:
    async with RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph:
        first = Scene(graph)
        await first.create(first.job("a"), first.job("b", "a"))
        await graph.remember(first.shard)
        assert await first.adopt() == ["a"]

    async with RedisTaskGraph(server.url, worker="dispatcher-2", timeout_seconds=10) as graph:
        assert not await graph.known([first.shard]), "another life's knowledge is none of ours"
        difference = await graph.difference([first.job("a"), first.job("b", "a")])
        await graph.tell(difference.changes)
        await graph.remember(first.shard)

        assert await graph.known([first.shard])
        assert [one.node for one in await graph.adopt([first.shard], {CAPABILITY: 9})] == ["a"]


@pytest.mark.parametrize("done", range(1, 6))
async def test_steps_that_a_killed_dispatcher_repeats_from_any_point_end_alike(scene: Scene, done: int) -> None:
    """A successor tells again what its predecessor told long before it died."""
    jobs = [scene.job("a"), scene.job("b", "a"), scene.job("c", "a"), scene.job("d", "b", "c")]
    steps: list[Callable[[], Awaitable[object]]] = [
        lambda: scene.create(*jobs),
        lambda: scene.tell(JobState.STARTED, "a"),
        lambda: scene.tell(JobState.FINISHED, "a"),
        lambda: scene.tell(JobState.STARTED, "b", "c"),
        lambda: scene.tell(JobState.FINISHED, "b", "c"),
    ]
    for step in steps[:done]:
        await step()

    for step in steps:
        await step()

    assert await scene.counts() == {"finished": 3, "queued": 1}
    assert await scene.adopt() == ["d"]
