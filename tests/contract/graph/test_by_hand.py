"""What every task graph promises about what people do to RQ with stock tools; the twin has methods for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest
from redis import Redis

from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import JobState, RequestKind
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.graph.stock import Stock


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


async def test_job_that_a_person_changed_is_a_request_and_not_unfinished(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a", state=JobState.FAILED))
    hands.requeue("a")

    assert not (await scene.graph.unfinished(scene.shard)).workflows
    await scene.tell(JobState.QUEUED, "a")
    assert [*(await scene.graph.unfinished(scene.shard)).workflows] == [scene.workflow]


@pytest.mark.parametrize("adopted", [False, True], ids=["queued", "adopted"])
async def test_requeue_of_a_failed_job_is_asked_for_until_it_is_told(hands: Hands, adopted: bool) -> None:
    scene = hands.scene
    await scene.create(scene.job("a", state=JobState.FAILED))

    hands.requeue("a")

    if adopted:
        assert await scene.adopt() == []
    assert await scene.requests() == [scene.request("a", RequestKind.REQUEUE)]
    await scene.tell(JobState.STARTED, "a")
    assert await scene.requests() == []
    assert await scene.counts() == {"started": 1}


async def test_requeue_that_is_refused_is_undone(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a", state=JobState.FAILED))
    hands.requeue("a")
    assert await scene.adopt() == []

    await scene.tell(JobState.FAILED, "a")

    assert await scene.requests() == []
    assert await scene.counts() == {"failed": 1}


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
