"""The task graph on Redis: its faults, its rights, and what its steps cost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from rq import Queue

from benchmarks.graph import GRAPHS, STEPS, measure, show
from coditect import Workflow
from coditect.model.capability import Priority
from coditect.registry.redis import RedisRegistry
from dispatcher.ledger.commands import Finished
from dispatcher.shards import batch
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.port import JobState, TaskGraphUnavailable
from dispatcher.taskgraph.records import queue_name
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.docs.pages import blocks
from tests.integration.registry.private_redis import PrivateRedis, run_private_redis
from tests.servers import ROOT
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import completed
from tests.unit.dispatcher.lone_worker import CAPABILITY as WORK
from tests.unit.dispatcher.lone_worker import LoneWorker, open_worker

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
        wrong = await graph.difference([first.job("a"), first.job("b", "a")])
        await graph.tell([job.as_change() for job in wrong])
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


RESULTS = 60


def scripts_run(client: Redis) -> int:
    """How many scripts Redis has run: our every round trip that changes anything is one."""
    stats: dict[str, Any] = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in ("eval", "evalsha"))


@pytest.fixture
async def lone(own_redis: PrivateRedis) -> AsyncIterator[LoneWorker]:
    async with (
        RedisTaskGraph(own_redis.url, worker="dispatcher-1", timeout_seconds=10) as graph,
        open_worker(graph) as opened,
    ):
        yield opened


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each transaction was for."""
    found, run = list[int](), batch.run

    def noted(tr: Transaction, **given: batch.Batch) -> batch.BatchResult:
        found.append(len(given["batch"].commands))
        return run(tr, **given)

    monkeypatch.setattr(batch, "run", noted)
    return found


async def test_results_together_cost_one_of_each(own_redis: PrivateRedis, lone: LoneWorker, batches: list[int]) -> None:
    flow = Workflow("fan")
    flow.task(WORK, after=[flow.task(WORK, name=f"n{at}") for at in range(RESULTS)], name="behind")
    await lone.start(flow)
    first, *others = [
        Finished(node_key, 1, flight.publication, completed()) for node_key, flight in lone.worker.in_flight
    ]
    with Redis.from_url(own_redis.url) as client:
        queue = Queue(queue_name(Priority.P1, lone.worker.shard), connection=client)
        await lone.say(first)
        await eventually(lambda: queue.finished_job_registry.count == 1)  # Redis has all scripts by now
        batches.clear()
        before = scripts_run(client)

        await asyncio.gather(*[lone.say(one) for one in others])
        await eventually(lambda: queue.finished_job_registry.count == RESULTS)

        assert scripts_run(client) == before + 1
        assert [commands for commands in batches if commands] == [RESULTS - 1]
        assert queue.started_job_registry.count == 1


PAGE = ROOT / "docs" / "task-graph.md"


async def test_user_of_the_documentation_may_do_what_is_needed(client: Redis, server: PrivateRedis) -> None:
    (rule,) = [block.text for block in blocks(PAGE) if block.text.startswith("user ")]
    name, *rights = rule.split()[1:]
    client.acl_setuser(name, enabled=True, reset=True)
    untyped: Any = client
    untyped.execute_command(
        "ACL", "SETUSER", name, *[right for right in rights if not right.startswith("#")], ">secret"
    )
    url = server.url.replace("redis://", f"redis://{name}:secret@")

    async with RedisTaskGraph(url, worker="dispatcher-1", timeout_seconds=10) as graph, RedisRegistry(url) as registry:
        scene = Scene(graph)
        await scene.create(scene.job("a"), scene.job("b", "a"))
        assert await scene.adopt() == ["a"]
        await scene.tell(JobState.FINISHED, "a")
        await graph.remember(scene.shard)
        assert await graph.known([scene.shard])
        assert await scene.requests() == []
        assert not await graph.difference([scene.job("a", state=JobState.FINISHED)])
        assert await graph.adopt([scene.shard], {CAPABILITY: 1})
        await graph.remove(scene.workflow, ["a", "b"])
        assert await registry.capabilities() == frozenset()
    with Redis.from_url(url) as limited:
        for command in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "dir"], ["GET", "other"]):
            with pytest.raises(NoPermissionError):
                limited.execute_command(*command)


async def test_benchmark_measures_each_step(server: PrivateRedis, capsys: pytest.CaptureFixture[str]) -> None:
    figures = await measure(server.url, nodes=30, rounds=1, stock=True)

    assert [(one.graph, one.step) for one in figures] == [(graph, step) for graph in GRAPHS for step in STEPS]
    assert all(one.ours_us > 0 and one.stock_us for one in figures)
    show(figures)
    assert len(capsys.readouterr().out.splitlines()) == len(figures) + 1
