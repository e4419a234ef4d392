"""What every task graph promises about stock tools in the hands of people, after a loss, and in an outage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, RequestKind, TaskGraphUnavailable
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import run_private_redis


class Hands(NamedTuple):
    scene: Scene
    cancel: Callable[[str], object]
    requeue: Callable[[str], object]
    stray: Callable[[str], object]


@pytest.fixture
async def hands(graph_url: str) -> AsyncIterator[Hands]:
    if not graph_url:
        memory = MemoryTaskGraph()
        scene = Scene(memory)
        by = scene.workflow
        yield Hands(
            scene,
            lambda node: memory.cancel(by, node),
            lambda node: memory.requeue(by, node),
            lambda node: memory.stray(by, node),
        )
        return
    async with RedisTaskGraph(graph_url, worker="dispatcher-1", timeout_seconds=10) as graph:
        scene = Scene(graph)
        with Redis.from_url(graph_url) as client:
            stock = Stock(client, scene)
            yield Hands(
                scene,
                lambda node: stock.fetch(node).cancel(),
                lambda node: stock.fetch(node).requeue(),
                lambda _: stock.work(),
            )


@pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.CANCELED])
async def test_cancel_of_a_job_in_any_state_is_asked_for_until_it_is_told(hands: Hands, state: JobState) -> None:
    scene = hands.scene
    await scene.create(scene.job("root"), scene.job("a", "root", state=state))

    hands.cancel("a")

    assert await scene.counts() == {"queued": 1, "canceled": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.CANCEL)] == await scene.requests()
    assert await scene.graph.difference([scene.job("a", state=JobState.CANCELED)])
    await scene.tell(JobState.CANCELED, "a")
    assert await scene.requests() == []
    assert not await scene.graph.difference([scene.job("a", state=JobState.CANCELED)])


@pytest.mark.parametrize("adopted", [False, True], ids=["queued", "adopted"])
@pytest.mark.parametrize("told", [JobState.STARTED, JobState.FAILED])
async def test_requeue_of_a_failed_job_is_asked_for_until_told(hands: Hands, adopted: bool, told: JobState) -> None:
    scene = hands.scene
    await scene.create(scene.job("a", state=JobState.FAILED))
    hands.requeue("a")
    if adopted:
        assert await scene.adopt() == []
    assert await scene.requests() == [scene.request("a", RequestKind.REQUEUE)]
    assert not (await scene.graph.unfinished(scene.shard)).workflows
    await scene.tell(told, "a")
    assert await scene.requests() == []
    assert await scene.counts() == {told.value: 1}
    assert [*(await scene.graph.unfinished(scene.shard)).workflows] == [scene.workflow] * (told is JobState.STARTED)


async def test_job_that_a_stock_worker_took_is_noticed_and_put_back(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a"), scene.job("b", "a"))

    hands.stray("a")

    assert await scene.counts() == {"failed": 1, "deferred": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.STRAY)]
    await scene.tell(JobState.QUEUED, "a")
    assert await scene.requests() == []
    assert await scene.adopt() == ["a"]


async def test_canceled_deferred_job_is_not_released(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a"), scene.job("b", "a"))

    hands.cancel("b")
    await scene.tell(JobState.FINISHED, "a")

    assert await scene.counts() == {"finished": 1, "canceled": 1}
    await scene.tell(JobState.DEFERRED, "b")
    await scene.tell(JobState.STARTED, "a")
    await scene.tell(JobState.FINISHED, "a")
    assert await scene.counts() == {"finished": 1, "queued": 1}


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
            AsyncRedis.from_url(server.url) as client,
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


async def test_every_call_of_a_silent_graph_fails_as_retryable(silent: tuple[Scene, Act]) -> None:
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
