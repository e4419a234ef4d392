"""Dispatchers that are cut off, whose loops die, or that come and go under load: nothing is lost or run twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulated_store import Disk, Faults, SimulatedDatabase
from chaos.simulated_task_graph import MemoryTaskGraph
from chaos.simulation import play
from chaos.simulation_plan import SimulationPlan
from coditect import Agent, Context, Workflow
from coditect.aio.network import BOTH, NetworkPath, Way
from coditect.aio.supervisor import LoopDied, RestartLimits, run_until
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.broker import NOTICED_SECONDS
from coditect.broker.port import Consumer
from coditect.client.workflow_run import WorkflowRun
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.workflow.approvals.file import read_policy
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.commands import Continue
from dispatcher.program import Dispatcher, unready
from tests.loops import loops, strike_for_ever, strike_once
from tests.support import eventually
from tests.unit.dispatcher.liveness.watch import ServerEvictor
from tests.unit.dispatcher.lone_ledger import layered
from tests.unit.dispatcher.lone_worker import LoneWorker
from tests.unit.dispatcher.planes import dispatcher_of

SHARDS = 4
MOVED_SECONDS = 5.0
PARTED_SECONDS = 20.0
QUEUES = (routing.results_queue, routing.control_queue)


@dataclass
class Post:
    """One dispatcher with its ways to the others."""

    broker: MemoryBroker
    store: SimulatedDatabase
    dispatcher: Dispatcher

    @property
    def shards(self) -> set[int]:
        return set(self.dispatcher.ownership.workers)

    @property
    def unready(self) -> str:
        return unready(self.broker, self.dispatcher)

    def part(self, of: str, *ways: Way) -> None:
        self._path(of).cut_off(*ways)

    def heal(self, of: str) -> None:
        self._path(of).heal()

    def _path(self, of: str) -> NetworkPath:
        return (self.broker if of == "broker" else self.store).path


@dataclass
class Scene:
    """Two dispatchers on one store, and agents."""

    fleet: TestFleet
    posts: list[Post]
    executed: Counter[str] = field(default_factory=Counter)


class PartedWhileItOpens(MemoryBroker):
    """Is cut off when a shard is about to be listened to, once."""

    parted = False

    async def consume(self, queue: str, *args: Any, **options: Any) -> Consumer:
        if not self.parted and queue in map(routing.results_queue, range(SHARDS)):
            self.parted = True
            self.path.cut_off()
        return await super().consume(queue, *args, **options)


@asynccontextmanager
async def open_scene(*, second: type[MemoryBroker] = MemoryBroker) -> AsyncIterator[Scene]:
    worker, executed = Agent("worker", slots=8), Counter[str]()

    @worker.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.3)

    async with TestFleet([worker], replicas=2) as fleet, AsyncExitStack() as stack:
        fleet.kill("dispatcher")
        disk, posts = Disk(), []
        for name, kind in (("ada", MemoryBroker), ("bob", second)):
            store = await stack.enter_async_context(SimulatedDatabase(disk))
            broker = await stack.enter_async_context(kind(fleet.server, name=name))
            running = dispatcher_of(fleet, broker, store, owner=name, evict=fleet.server, shards=SHARDS)
            posts.append(Post(broker, store, await stack.enter_async_context(running)))
        if second is MemoryBroker:
            await eventually(lambda: [len(post.shards) for post in posts] == [2, 2])
        yield Scene(fleet, posts, executed)
        for post in posts:
            post.heal("broker")
            post.heal("store")


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


def chain(many: int) -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work", name="n0")
    for number in range(1, many):
        before = flow.task("work", name=f"n{number}", after=[before])
    return flow


@pytest.mark.parametrize("ways", [BOTH, (Way.TO_SERVER,), (Way.TO_CLIENT,)], ids=["both", "mute", "deaf"])
@pytest.mark.parametrize("of", ["broker", "store"])
async def test_shards_of_a_cut_off_dispatcher_move_and_come_back(scene: Scene, of: str, ways: tuple[Way, ...]) -> None:
    ada, bob = scene.posts
    runs = [await scene.fleet.start(chain(20)) for _ in range(6)]
    await scene.fleet.advance(1)

    ada.part(of, *ways)
    began = scene.fleet.elapsed_seconds
    await eventually(lambda: bob.shards == set(range(SHARDS)))
    assert scene.fleet.elapsed_seconds - began < MOVED_SECONDS + NOTICED_SECONDS * (ways != BOTH)
    assert (ada.shards, bob.unready) == (set(), "")
    assert of in ada.unready
    done = sum(scene.executed.values())
    await scene.fleet.advance(3)
    assert sum(scene.executed.values()) - done > 30, "all six chains go on"

    await scene.fleet.advance(PARTED_SECONDS)
    ada.heal(of)
    await eventually(lambda: [len(post.shards) for post in scene.posts] == [2, 2])

    assert ada.unready == ""
    assert {await run.wait(timeout="5m") for run in runs} == {WorkflowState.COMPLETED}
    assert max(scene.executed.values()) <= 2


@pytest.mark.parametrize("of", ["broker", "store"])
async def test_cut_that_is_shorter_than_a_lease_moves_nothing_and_repeats_nothing(scene: Scene, of: str) -> None:
    ada, bob = scene.posts
    before = ada.shards, bob.shards
    runs = [await scene.fleet.start(chain(10)) for _ in range(4)]
    await scene.fleet.advance(1)

    ada.part(of)
    await scene.fleet.advance(1.5)
    ada.heal(of)

    assert {await run.wait(timeout="1m") for run in runs} == {WorkflowState.COMPLETED}
    assert (ada.shards, bob.shards) == before
    assert set(scene.executed.values()) == {1}


async def test_dispatchers_of_a_machine_that_stood_still_keep_their_shards(scene: Scene) -> None:
    before = [dict(post.dispatcher.ownership.workers) for post in scene.posts]

    scene.fleet._virtual_clock.now += PARTED_SECONDS
    await scene.fleet.advance(3)

    assert [dict(post.dispatcher.ownership.workers) for post in scene.posts] == before


async def test_dispatcher_without_a_broker_takes_no_shard_and_keeps_its_connections_when_it_is_back(
    scene: Scene,
) -> None:
    ada, bob = scene.posts
    ada.part("broker")
    await eventually(lambda: bob.shards == set(range(SHARDS)))
    seen = set[int]()
    for _ in range(round(PARTED_SECONDS / 0.5)):
        await scene.fleet.advance(0.5)
        seen.add(len(bob.shards))
    assert seen == {SHARDS}, "a shard that it took would have nobody who listens"
    ada.heal("broker")
    await eventually(lambda: len(ada.shards) == 2)
    losses = 0

    async def lost() -> None:
        nonlocal losses
        losses += 1

    ada.broker.on_reconnect(lost)
    await scene.fleet.advance(15)  # longer than a former owner is looked for
    assert (losses, len(ada.shards)) == (0, 2)


async def test_shard_that_is_given_up_while_it_opens_is_listened_to_by_its_next_owner_alone() -> None:
    async with open_scene(second=PartedWhileItOpens) as scene:
        _, bob = scene.posts
        await eventually(lambda: bob.dispatcher.ownership.cut_off_from == "broker")
        await scene.fleet.advance(1)

        bob.heal("broker")
        await scene.fleet.advance(PARTED_SECONDS)

        assert [(len(post.shards), post.unready) for post in scene.posts] == [(2, ""), (2, "")]
        queues = [scene.fleet.server.queue(name(shard)) for name in QUEUES for shard in range(SHARDS)]
        assert {queue.stats.consumers for queue in queues} == {1}
        assert await (await scene.fleet.start(chain(3))).wait(timeout="1m") is WorkflowState.COMPLETED


async def test_exchange_that_is_gone_keeps_no_shard_from_being_opened(scene: Scene) -> None:
    ada, bob = scene.posts
    for exchange in (routing.RESULTS, routing.CONTROL):
        scene.fleet.server.exchanges.delete(exchange)

    ada.part("broker")

    await eventually(lambda: bob.shards == set(range(SHARDS)))
    run = await scene.fleet.start(chain(3))
    assert await run.wait(timeout="1m") is WorkflowState.COMPLETED


SCALED_SHARDS = 8
WIDTH, DEPTH = 6, 4
SLOW = Faults(conflict=0.01, latency_seconds=(0.0005, 0.003))


class Evictions(ServerEvictor):
    """The broker's, which remembers whose connections it was asked to close."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.asked: list[str] = []

    async def evict(self, process: str) -> int:
        self.asked.append(process)
        return await super().evict(process)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.endurance) for seed in range(1, 6))])
async def test_scaling_from_one_to_four_and_back_under_load_repeats_nothing_and_evicts_nobody(seed: int) -> None:
    executed: Counter[str] = Counter()
    worker = Agent("worker", slots=8)

    @worker.capability("work")
    async def work(_: dict[str, int], ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.3 if executed.total() % 50 else 2.5)  # some are acknowledged early

    async with TestFleet([worker], replicas=3, seed=seed) as fleet, AsyncExitStack() as stack:
        fleet.kill("dispatcher")
        evictions = Evictions(fleet.server)
        disk = Disk()

        async def join(number: int) -> tuple[Dispatcher, AsyncExitStack]:
            enter = (own := await stack.enter_async_context(AsyncExitStack())).enter_async_context
            store = await enter(SimulatedDatabase(disk, faults=SLOW, seed=number))
            broker = await enter(MemoryBroker(fleet.server, name=f"dispatcher-{number}"))
            running = dispatcher_of(fleet, broker, store, owner=broker.name, evict=evictions, shards=SCALED_SHARDS)
            return await enter(running), own

        first, _ = await join(1)
        runs: list[WorkflowRun] = []
        enough = asyncio.Event()
        starting = asyncio.create_task(keep_starting(fleet, runs, enough))
        await asyncio.sleep(2)
        joined = []
        for number in (2, 3, 4):
            joined.append(await join(number))
            await asyncio.sleep(0.9)
        await eventually(lambda: all(one.ownership.workers for one, _ in joined))
        for _, own in joined:
            await own.aclose()
            await asyncio.sleep(0.9)
        await eventually(lambda: len(first.ownership.workers) == SCALED_SHARDS)
        enough.set()
        await starting

        ends = {await run.wait(timeout="5m") for run in runs}

    assert ends == {WorkflowState.COMPLETED}
    assert len(executed) == len(runs) * WIDTH * DEPTH
    assert ({task: times for task, times in executed.items() if times > 1}, evictions.asked) == ({}, [])


async def keep_starting(fleet: TestFleet, runs: list[WorkflowRun], enough: asyncio.Event) -> None:
    """One more workflow each half second."""
    while not enough.is_set():
        runs.append(await fleet.client.start(layered(WIDTH, DEPTH)))
        await asyncio.sleep(0.5)


CRITICAL = (
    "backlogs",
    "broker and store, for the leases",
    "leases",
    "orphan detector 0",
    "shard worker 0",
    "stand for the lead",
    "timers of shard 0",
    "watch agents",
)
OPTIONAL = (
    "adopt from RQ",
    "clock",
    "queue depths",
    "registered capabilities",
    "compare RQ with the ledger",
    "compare what ended with RQ",
    "dropped copies",
    "projector 0",
    "requests in RQ",
    "retention",
    "settle doubts",
    "tidy",
)
POLICY = read_policy(b"rules: [{name: dear, cost_above: 1000, risk: low, action: refuse}]")
"""To know what the tasks cost, the dispatcher follows what agents register."""
NODES = 15
HEALED_SECONDS = 2.0
ENDED_SECONDS = 15.0


@dataclass
class LoopScene:
    """A dispatcher at work, and an agent."""

    fleet: TestFleet
    broker: MemoryBroker
    dispatcher: Dispatcher
    executed: Counter[str]

    @property
    def unready(self) -> str:
        return unready(self.broker, self.dispatcher)

    async def healed(self) -> float:
        """Virtual seconds until it is ready again."""
        began = self.fleet.elapsed_seconds
        while self.unready:
            await asyncio.sleep(0.05)
        return self.fleet.elapsed_seconds - began


@asynccontextmanager
async def open_loop_scene(seed: int = 0) -> AsyncIterator[LoopScene]:
    worker, executed = Agent("worker", slots=2), Counter[str]()

    @worker.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.05)

    async with (
        TestFleet([worker], seed=seed) as fleet,
        SimulatedDatabase(Disk()) as store,
        MemoryBroker(fleet.server, name="ada") as broker,
    ):
        fleet.kill("dispatcher")
        options: dict[str, Any] = {"graph": MemoryTaskGraph(), "evict": fleet.server, "shards": 1, "approvals": POLICY}
        async with dispatcher_of(fleet, broker, store, owner="ada", **options) as dispatcher:
            yield LoopScene(fleet, broker, dispatcher, executed)
        fleet.forgive_crashes()


@pytest.fixture
async def at_work() -> AsyncIterator[LoopScene]:
    async with open_loop_scene() as opened:
        yield opened


async def test_every_loop_of_the_dispatcher_is_critical_or_optional(at_work: LoopScene) -> None:
    health = at_work.dispatcher.health

    assert loops(health, critical=True) == set(CRITICAL)
    assert loops(health, critical=False) == set(OPTIONAL)
    assert at_work.unready == ""


@pytest.mark.parametrize("name", CRITICAL + OPTIONAL)
async def test_loop_that_dies_is_healed_and_nothing_is_lost(
    at_work: LoopScene, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = await at_work.fleet.start(chain(NODES))
    await at_work.fleet.advance(0.5)

    await strike_once(at_work.dispatcher.health, name)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    down = at_work.unready

    assert (repr(name) in down) is (name in CRITICAL)
    assert "Struck" in down or name in OPTIONAL
    assert await at_work.healed() < HEALED_SECONDS
    assert at_work.dispatcher.ownership.figures()["restarts"] == 1
    assert await run.wait(timeout="60s") is WorkflowState.COMPLETED
    assert Counter(at_work.executed.values()) == {1: NODES}
    (said,) = [record for record in caplog.records if record.message == "A loop died; it is started again"]
    assert (vars(said)["loop"], vars(said)["critical"]) == (name, name in CRITICAL)
    assert "Struck" in vars(said)["error"]


async def test_loop_that_waits_for_a_shard_s_lost_consumers_and_dies_is_healed(at_work: LoopScene) -> None:
    name = "consumers of shard 0"
    run = await at_work.fleet.start(chain(NODES))
    await at_work.fleet.advance(0.5)
    at_work.fleet.server.cancel_consumers(routing.results_queue(0))
    await eventually(lambda: name in loops(at_work.dispatcher.health, critical=True))

    await strike_once(at_work.dispatcher.health, name)
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert repr(name) in at_work.dispatcher.health.why_not()
    assert await at_work.healed() < HEALED_SECONDS
    assert name not in loops(at_work.dispatcher.health, critical=True), "it is over, since reports arrive again"
    assert await run.wait(timeout="60s") is WorkflowState.COMPLETED
    assert Counter(at_work.executed.values()) == {1: NODES}


@pytest.mark.parametrize("name", CRITICAL)
async def test_critical_loop_that_dies_for_ever_ends_the_process_and_is_named(at_work: LoopScene, name: str) -> None:
    striking = asyncio.ensure_future(strike_for_ever(at_work.dispatcher.health, name))
    began = at_work.fleet.elapsed_seconds

    with pytest.raises(LoopDied) as ended:
        await run_until(asyncio.Event(), at_work.dispatcher.health.failure())

    assert at_work.fleet.elapsed_seconds - began < ENDED_SECONDS
    assert ended.value.facts["loop"] == name
    assert ended.value.facts["deaths"] == RestartLimits().most_deaths
    striking.cancel()


async def test_optional_loops_that_die_for_ever_hold_up_no_workflow(at_work: LoopScene) -> None:
    striking = [asyncio.ensure_future(strike_for_ever(at_work.dispatcher.health, name)) for name in OPTIONAL]
    await at_work.fleet.advance(1)

    run = await at_work.fleet.start(chain(NODES))

    assert await run.wait(timeout="300s") is WorkflowState.COMPLETED
    assert Counter(at_work.executed.values()) == {1: NODES}
    assert at_work.unready == ""
    for each in striking:
        each.cancel()


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    deaths=st.lists(st.tuples(st.sampled_from(CRITICAL + OPTIONAL), st.floats(0.0, 1.0)), min_size=1, max_size=12),
)
def test_loops_that_die_at_any_instant_lose_nothing(seed: int, deaths: list[tuple[str, float]]) -> None:
    async def live() -> None:
        async with open_loop_scene(seed) as at_work:
            run = await at_work.fleet.start(chain(NODES))
            for name, pause in deaths:
                await asyncio.sleep(pause)
                if at_work.dispatcher.ownership.workers:
                    await strike_once(at_work.dispatcher.health, name)

            assert await run.wait(timeout="120s") is WorkflowState.COMPLETED
            await at_work.healed()

            assert len(at_work.executed) == NODES

    asyncio.run(live())


def raising(answer: object) -> None:
    """A settlement that cannot be told."""
    raise RuntimeError("the fault that was asked for")


async def test_worker_that_dies_with_a_command_in_hand_does_those_behind_it(lone: LoneWorker) -> None:
    lone.worker.put(Continue(), raising)
    lone.worker.put(Continue(), raising)

    await lone.start()

    await eventually(lambda: lone.published() == 1)
    assert lone.ports.background.health.deaths == {"shard worker 0": 2}


@pytest.mark.parametrize("seed", [1, 2])
def test_no_promise_is_broken_by_functions_that_run_twice(seed: int) -> None:
    played = play(seed, SimulationPlan(seconds=2.0))

    assert played.violations == ()
    assert played.faults
