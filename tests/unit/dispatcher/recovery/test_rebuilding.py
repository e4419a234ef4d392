"""A rebuild on demand tells what it made again: what was missing, over all shards, each once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import cast

import pytest

from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.operations.rebuild import KINDS, rebuild
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from coditect.wire.control import Started
from dispatcher.ledger.commands import Began
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import republish
from dispatcher.liveness.broker_epoch import BrokerEpoch
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher
from dispatcher.recovery import rebuild as rebuilding
from dispatcher.scheduling import reconciler
from dispatcher.shards import in_flight
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import GraphDifference, Job, JobState
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import AGENT
from tests.unit.dispatcher.lone_worker import ONLY, open_worker

SHARDS = 3
WIDTH = 8


class Scene:
    """A dispatcher of several shards with RQ in memory, and workflows whose nodes no agent takes."""

    def __init__(self, dispatcher: Dispatcher, broker: MemoryBroker, graph: MemoryTaskGraph) -> None:
        self.dispatcher = dispatcher
        self.broker = broker
        self.graph = graph
        self.runs: list[Run] = []

    async def rebuild(self) -> dict[str, int]:
        rebuilt = await rebuild(self.broker)
        assert rebuilt.compared
        return rebuilt.counts

    async def is_remembered(self) -> bool:
        return len(await self.graph.known(range(SHARDS))) == SHARDS

    async def shown(self) -> None:
        def are_queued() -> bool:
            states = [self.graph.state(run.id, f"n{number}") for run in self.runs for number in range(WIDTH)]
            return states == [JobState.STARTED] * len(states)

        await eventually(are_queued)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(reconciler, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(reconciler, "BATCH", 3)
    monkeypatch.setattr(in_flight, "UNTOLD_SECONDS", 0.0)
    monkeypatch.setattr(republish, "MOST_NODES", 3)
    server, registry, graph, clock = MemoryServer(), MemoryRegistry(), MemoryTaskGraph(), SystemClock()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(MemoryBroker(server, name="dispatcher"))
        plane = running_dispatcher(
            broker=broker, registry=registry, clock=clock, graph=graph, options=DispatcherOptions(shards=SHARDS)
        )
        found = Scene(await enter(plane), await enter(MemoryBroker(server, name="doctor")), graph)
        client = await enter(Client(found.broker, registry, clock=clock, name="client-test"))
        await found.broker.declare(base_topology() + capability_queues("work"))
        await eventually(found.is_remembered)  # or the shards that RQ did not have yet are shown again during a test
        flow = Workflow("waits")
        for number in range(WIDTH):
            flow.task("work", name=f"n{number}")
        found.runs = [await client.start(flow) for _ in range(4)]
        await found.shown()
        yield found


async def test_only_what_is_published_anew_is_told_where_nothing_is_missing(scene: Scene) -> None:
    nothing = dict.fromkeys(KINDS, 0)

    assert await scene.rebuild() == nothing | {"published": 4 * WIDTH}
    assert await scene.rebuild() == nothing | {"published": 4 * WIDTH}


async def test_what_was_missing_is_told_once(scene: Scene) -> None:
    await scene.broker.delete_queue(routing.retry_queue(RETRY_DELAYS_MS[0]))
    await scene.broker.delete_queue(routing.DEAD_NOTICES)
    for run, node in ((scene.runs[0], "n0"), (scene.runs[0], "n7"), (scene.runs[3], "n4")):
        scene.graph.lose(run.id, node)

    counts = await scene.rebuild()

    assert counts == {"queues": 2, "published": 4 * WIDTH, "working": 0, "workflows": 2, "jobs": 3}
    assert await scene.broker.stats(routing.DEAD_NOTICES) is not None
    await scene.shown()
    assert (await scene.rebuild())["jobs"] == 0


async def test_jobs_that_redis_does_not_tell_are_not_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rebuilding, "COMPARE_SECONDS", 0.0)

    rebuilt = await rebuild(scene.broker)

    assert (rebuilt.counts["jobs"], rebuilt.compared) == (0, False)
    assert "RQ could not be compared; it is shown everything" in caplog.messages


async def test_jobs_that_were_found_before_redis_was_gone_are_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "AGAIN_SECONDS", 0.0)
    for run in scene.runs:
        for number in range(WIDTH):
            scene.graph.lose(run.id, f"n{number}")
    difference, looks = scene.graph.difference, count()

    async def goes(jobs: Sequence[Job], _: object = ()) -> GraphDifference:
        scene.graph.failing = next(looks) == 2  # after both looks at a first page
        return await difference(jobs)

    monkeypatch.setattr(scene.graph, "difference", goes)

    rebuilt = await rebuild(scene.broker)

    assert not rebuilt.compared
    assert rebuilt.counts["jobs"] >= 3
    assert rebuilt.counts["workflows"] >= 1


class Unsure:
    """Finds no marker, and can make none."""

    def __init__(self, there: bool) -> None:
        self.there = there

    async def of_broker(self, known: str) -> str:
        return known

    async def is_there(self, marker: str) -> bool:
        return self.there


@pytest.mark.parametrize("silent_seconds", [0, 100])
@pytest.mark.parametrize("there", [True, False])
async def test_what_was_begun_is_published_anew_unless_the_broker_surely_has_it(
    there: bool, silent_seconds: int
) -> None:
    """A silence may be this process's: it stood still. The orphan detector knows of that, not the rebuild."""
    async with open_worker() as lone:
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        flight = lone.flight
        await lone.say(Began(Started(*ONLY, flight.fence, flight.publication, AGENT, 1, 0)))
        before = lone.flight.publication
        lone.flight.heard -= silent_seconds

        told = await rebuilding.rebuild(lone.ports, lone.worker, cast(BrokerEpoch, Unsure(there)), "a person")

        assert (told["published"], told["working"]) == (0, 0 if there else 1)
        assert (lone.flight.publication == before) is there


async def test_all_that_is_published_anew_is_told_when_batches_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Workflow("waits")
    for number in range(WIDTH):
        flow.task("work", name=f"n{number}")
    async with open_worker() as lone:
        await lone.start(flow)
        await eventually(lambda: lone.published() == WIDTH)
        looks = count()
        monkeypatch.setattr(UnitOfWork, "is_full", property(lambda _: next(looks) < 10))

        told = await rebuilding.rebuild(lone.ports, lone.worker, cast(BrokerEpoch, Unsure(there=False)), "a person")

        assert told["published"] == WIDTH
