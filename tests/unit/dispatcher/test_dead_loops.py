"""A dispatcher whose loop dies is not ready within a second, heals and loses nothing; for ever, the process ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Workflow
from coditect.aio.supervisor import LoopDied, RestartLimits, run_until
from coditect.broker.memory import MemoryBroker
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.workflow.approvals.file import read_policy
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.commands import GoOn
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher, unready
from dispatcher.store.memory import Disk, MemoryDatabase
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.loops import loops, strike_for_ever, strike_once
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import open_worker

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
NODES = 30
HEALED_SECONDS = 2.0
ENDED_SECONDS = 15.0


@dataclass
class Scene:
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
async def scene(seed: int = 0) -> AsyncIterator[Scene]:
    worker, executed = Agent("worker", slots=2), Counter[str]()

    @worker.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.05)

    async with (
        TestFleet([worker], seed=seed) as fleet,
        MemoryDatabase(Disk()) as store,
        MemoryBroker(fleet.server, name="ada") as broker,
    ):
        fleet.kill("dispatcher")
        running = running_dispatcher(
            broker=broker,
            registry=fleet.registry,
            clock=fleet._clock("ada"),
            database=store,
            graph=MemoryTaskGraph(),
            evict=fleet.server,
            options=DispatcherOptions(shards=1, owner="ada", approvals=POLICY),
        )
        async with running as dispatcher:
            yield Scene(fleet, broker, dispatcher, executed)
        fleet.forgive_crashes()


def chain() -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work", name="n0")
    for number in range(1, NODES):
        before = flow.task("work", name=f"n{number}", after=[before])
    return flow


async def test_every_loop_of_the_dispatcher_is_critical_or_optional() -> None:
    async with scene() as one:
        health = one.dispatcher.health

        assert loops(health, critical=True) == set(CRITICAL)
        assert loops(health, critical=False) - {"tell Redis of the store's incarnation"} == set(OPTIONAL)
        assert one.unready == ""


@pytest.mark.parametrize("name", CRITICAL + OPTIONAL)
async def test_loop_that_dies_is_healed_and_nothing_is_lost(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with scene() as one:
        run = await one.fleet.start(chain())
        await one.fleet.advance(0.5)

        await strike_once(one.dispatcher.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        down = one.unready

        assert (repr(name) in down) is (name in CRITICAL)
        assert "Struck" in down or name in OPTIONAL
        assert await one.healed() < HEALED_SECONDS
        assert one.dispatcher.ownership.figures()["restarts"] == 1
        assert await run.wait(timeout="60s") is WorkflowState.COMPLETED
        assert Counter(one.executed.values()) == {1: NODES}
    (said,) = [record for record in caplog.records if record.message == "A loop died; it is started again"]
    assert (vars(said)["loop"], vars(said)["critical"]) == (name, name in CRITICAL)
    assert "Struck" in vars(said)["error"]


async def test_loop_that_waits_for_a_shard_s_lost_consumers_and_dies_is_healed() -> None:
    name = "consumers of shard 0"
    async with scene() as one:
        run = await one.fleet.start(chain())
        await one.fleet.advance(0.5)
        one.fleet.server.cancel_consumers(routing.results_queue(0))
        await eventually(lambda: name in loops(one.dispatcher.health, critical=True))

        await strike_once(one.dispatcher.health, name)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        assert repr(name) in one.dispatcher.health.why_not()
        assert await one.healed() < HEALED_SECONDS
        assert name not in loops(one.dispatcher.health, critical=True), "it is over, since reports arrive again"
        assert await run.wait(timeout="60s") is WorkflowState.COMPLETED
        assert Counter(one.executed.values()) == {1: NODES}


@pytest.mark.parametrize("name", CRITICAL)
async def test_critical_loop_that_dies_for_ever_ends_the_process_and_is_named(name: str) -> None:
    async with scene() as one:
        striking = asyncio.ensure_future(strike_for_ever(one.dispatcher.health, name))
        began = one.fleet.elapsed_seconds

        with pytest.raises(LoopDied) as ended:
            await run_until(asyncio.Event(), one.dispatcher.health.failure())

        assert one.fleet.elapsed_seconds - began < ENDED_SECONDS
        assert ended.value.facts["loop"] == name
        assert ended.value.facts["deaths"] == RestartLimits().most_deaths
        striking.cancel()


async def test_optional_loops_that_die_for_ever_hold_up_no_workflow() -> None:
    async with scene() as one:
        striking = [asyncio.ensure_future(strike_for_ever(one.dispatcher.health, name)) for name in OPTIONAL]
        await one.fleet.advance(1)

        run = await one.fleet.start(chain())

        assert await run.wait(timeout="300s") is WorkflowState.COMPLETED
        assert Counter(one.executed.values()) == {1: NODES}
        assert one.unready == ""
        for each in striking:
            each.cancel()


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    deaths=st.lists(st.tuples(st.sampled_from(CRITICAL + OPTIONAL), st.floats(0.0, 1.0)), min_size=1, max_size=12),
)
def test_loops_that_die_at_any_instant_lose_nothing(seed: int, deaths: list[tuple[str, float]]) -> None:
    async def live() -> None:
        async with scene(seed) as one:
            run = await one.fleet.start(chain())
            for name, pause in deaths:
                await asyncio.sleep(pause)
                if one.dispatcher.ownership.workers:
                    await strike_once(one.dispatcher.health, name)

            assert await run.wait(timeout="120s") is WorkflowState.COMPLETED
            await one.healed()

            assert len(one.executed) == NODES

    asyncio.run(live())


class Raising:
    """A settlement that cannot be told."""

    def done(self, answer: object) -> None:
        raise RuntimeError("the fault that was asked for")

    def undone(self) -> None:
        raise RuntimeError("the fault that was asked for")


async def test_worker_that_dies_with_a_command_in_hand_does_those_behind_it() -> None:
    async with open_worker() as lone:
        lone.worker.put(GoOn(), Raising())
        lone.worker.put(GoOn(), Raising())

        await lone.start()

        await eventually(lambda: lone.published() == 1)
        assert lone.ports.background.health.deaths == {"shard worker 0": 2}
