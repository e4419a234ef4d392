"""Brokers that restart or come back empty, and agents that die unseen: an attempt is used up only by a death."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from chaos.simulated_store import Disk, SimulatedDatabase
from coditect import Agent, Context, Retry, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.client.workflow_run import WorkflowRun
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.task import Owner
from coditect.operations.rebuild import rebuild
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.control import Verb, request
from coditect.wire.routing import task_queue
from coditect.wire.workflow_tasks import claim_body
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.nodes.attempts import FREE_LOSSES
from dispatcher.program import DispatcherOptions, running_dispatcher
from tests.unit.dispatcher.lone_ledger import layered, wide


class Builders:
    """An agent whose task takes a while, or ends its agents; and the attempts with which its executions began."""

    def __init__(self, seconds: float = 60.0, **settings: Any) -> None:
        self.agent = Agent("builder", slots=2)
        self.agent.capability("repo.build", timeout="5m", **settings)(self.build)
        self.seconds = seconds
        self.cleanup_seconds = 0.0
        self.begun: list[int] = []
        self.kill: TestFleet | None = None
        """The fleet whose agents each execution ends."""

    async def build(self, repo: str, ctx: Context) -> str:
        self.begun.append(ctx.attempt)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(self.cleanup_seconds)
            raise
        if self.kill is not None:
            self.kill.kill(ctx.agent_id)
        return ctx.agent_id


def lone(retry: Retry | None = None) -> Workflow:
    flow = Workflow("lone")
    if retry is None:
        flow.task("repo.build", "search", name="build")
    else:
        flow.task("repo.build", "search", name="build", retry=retry)
    return flow


async def reasons(run: WorkflowRun) -> list[str]:
    return [row.reason async for row in run.attempts()]


async def restart(fleet: TestFleet) -> None:
    fleet.server.stop()
    await fleet.advance("1s")
    fleet.server.start()


async def cut(fleet: TestFleet) -> None:
    for agent in fleet.agents:
        fleet.drop_connections(agent.id)


async def restart_and_wipe_redis(fleet: TestFleet) -> None:
    fleet.wipe_registry()
    await restart(fleet)
    fleet.wipe_registry()


@pytest.mark.parametrize("fault", [restart, cut, restart_and_wipe_redis])
@pytest.mark.parametrize("retry", [Retry(max_attempts=6), None, Retry(max_attempts=1)], ids=["6", "default", "1"])
async def test_delivery_that_a_living_agent_lost_uses_up_no_attempt(retry: Retry | None, fault: Any) -> None:
    builders = Builders()
    async with TestFleet(agents=[builders.agent], replicas=4) as fleet:
        run = await fleet.client.start(lone(retry))
        for _ in range(5):
            await fleet.advance("4s")
            await fault(fleet)

        assert await run.wait(timeout="20m") is WorkflowState.COMPLETED
        assert "process_died" not in await reasons(run)
        assert set(builders.begun) == {1}


@pytest.mark.parametrize("seconds", [0.01, 0.3, 20.0], ids=str)
@pytest.mark.parametrize(("own", "most"), [(Retry(max_attempts=4), 4), (None, 2)], ids=["node's", "capability's"])
async def test_task_that_kills_its_agents_is_stopped_by_policy(own: Retry | None, most: int, seconds: float) -> None:
    builders = Builders(seconds, retry=Retry(max_attempts=2))
    async with TestFleet(agents=[builders.agent], replicas=12) as fleet:
        builders.kill = fleet
        run = await fleet.client.start(lone(own))

        assert await run.wait(timeout="10m") is WorkflowState.FAILED

        assert most <= len(builders.begun) <= most + 1, "a first death before its start was told is not counted"
        assert (await reasons(run))[-1] == "process_died"
        assert fleet.elapsed_seconds < most * (seconds + 15)


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "lives"])
async def test_fate_of_an_agent_is_found_out_while_redis_is_away(dies: bool) -> None:
    builders = Builders(seconds=20.0)
    async with TestFleet(agents=[builders.agent], replicas=2) as fleet:
        run = await fleet.client.start(lone(Retry(max_attempts=1)))
        await fleet.advance("5s")
        (holder,) = [row.agent async for row in run.attempts()]
        fleet.registry.failing = True
        if dies:
            fleet.kill(holder)
        else:
            await cut(fleet)

        ended = WorkflowState.FAILED if dies else WorkflowState.COMPLETED
        assert await run.wait(timeout="5m") is ended
        assert ("process_died" in await reasons(run)) is dies
        assert set(builders.begun) == {1}


@pytest.mark.parametrize("cleanup_seconds", [0.0, 10.0], ids=["ends", "outlasts"])
@pytest.mark.parametrize("retry", [Retry(max_attempts=6), None, Retry(max_attempts=1)], ids=["6", "default", "1"])
async def test_task_that_a_drain_breaks_off_uses_up_no_attempt(retry: Retry | None, cleanup_seconds: float) -> None:
    builders = Builders(seconds=90.0)
    builders.cleanup_seconds = cleanup_seconds
    async with TestFleet(agents=[builders.agent]) as fleet:
        run = await fleet.client.start(lone(retry))
        for _ in range(4):
            await fleet.advance("10s")
            old = [one.id for one in fleet.agents]
            await fleet.add(builders.agent)
            for agent in old:
                await fleet.drain(agent)

        assert await run.wait(timeout="20m") is WorkflowState.COMPLETED
        assert await reasons(run) == ["interrupted"] * 4 + [""]
        assert builders.begun == [1] * 5


async def test_task_that_stops_each_of_its_agents_in_an_orderly_way_is_stopped_in_the_end() -> None:
    builders = Builders(seconds=600.0)
    async with TestFleet(agents=[builders.agent]) as fleet:
        run = await fleet.client.start(lone(Retry(max_attempts=2)))
        for _ in range(30):
            await fleet.advance("1s")
            old = [one.id for one in fleet.agents]
            await fleet.add(builders.agent)
            for agent in old:
                await fleet.drain(agent)

        assert await run.wait(timeout="20m") is WorkflowState.FAILED
        assert (await reasons(run))[-1] == "lost_too_often"
        assert len(builders.begun) == FREE_LOSSES + 2


async def test_agent_that_died_while_the_broker_restarted_is_told_from_those_that_live() -> None:
    builders = Builders()
    flow = wide(8, "repo.build", "search", retry=Retry(max_attempts=2))
    async with TestFleet(agents=[builders.agent], replicas=5) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("5s")
        held = {row.node: row.agent async for row in run.attempts()}
        dead = held["n0"]
        fleet.server.stop()
        fleet.kill(dead)
        await fleet.advance("1s")
        fleet.server.start()

        assert await run.wait(timeout="20m") is WorkflowState.COMPLETED
        died = {(row.node, row.agent) async for row in run.attempts() if row.reason == "process_died"}
        assert died == {(node, agent) for node, agent in held.items() if agent == dead}


async def test_number_of_lost_deliveries_may_exceed_the_attempts() -> None:
    builders = Builders(seconds=200.0)
    async with TestFleet(agents=[builders.agent], replicas=2) as fleet:
        run = await fleet.client.start(lone(Retry(max_attempts=1)))
        for _ in range(FREE_LOSSES + 1):  # the agent that runs it gets it back: none of them is a loss
            await fleet.advance("2s")
            await cut(fleet)

        assert await run.wait(timeout="1h") is WorkflowState.COMPLETED
        assert set(builders.begun) == {1}


class Workers:
    """An agent whose tasks take a while; what they did is keyed by their idempotency key."""

    def __init__(self, seconds: float = 0.3) -> None:
        self.seconds = seconds
        self.agent = Agent("worker", slots=8)
        self.agent.capability("work")(self.work)
        self.effects: dict[str, int] = {}
        self.executions = 0

    async def work(self, body: dict[str, int], ctx: Context) -> int:
        self.executions += 1
        await asyncio.sleep(self.seconds)
        return self.effects.setdefault(ctx.task_id, body["n"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("dies", [False, True])
async def test_workflow_ends_and_no_node_has_two_outcomes(seed: int, dies: bool) -> None:
    workers = Workers()
    async with TestFleet(agents=[workers.agent], seed=seed, replicas=2) as fleet:
        run = await fleet.client.start(layered(20, 5))
        await fleet.advance(1)  # amid the naps of a layer: at 0.9 all of one may have ended, and none of the next begun
        assert 0 < len(workers.effects) < 100

        fleet.server.stop()
        if dies:
            fleet.kill(fleet.agents[0].id)
        fleet.server.start(lose_messages=True)

        assert await run.wait(timeout="5m") is WorkflowState.COMPLETED
        ends = Counter([row.node async for row in run.attempts() if row.status == "completed"])
        assert len(ends) == 100
        assert set(ends.values()) == {1}
        assert workers.executions > len(workers.effects) == 100
        order = {row.name: row async for row in run.nodes()}
        for row in order.values():
            assert all((order[before].finished_at_ms or 0) <= (row.started_at_ms or 0) for before in row.after)
        assert fleet.elapsed_seconds < 30


async def test_connection_that_breaks_costs_no_publication() -> None:
    workers = Workers()
    async with TestFleet(agents=[workers.agent]) as fleet:
        run = await fleet.client.start(layered(20, 3))
        await fleet.advance(0.5)

        fleet.drop_connections("dispatcher")

        assert await run.wait(timeout="5m") is WorkflowState.COMPLETED
        assert workers.executions == 60


@pytest.mark.parametrize("at", [0.02, 0.5, 0.65])
async def test_rebuild_on_demand_of_a_healthy_fleet_executes_nothing_twice(at: float) -> None:
    workers = Workers()
    async with TestFleet(agents=[workers.agent], replicas=2) as fleet:
        run = await fleet.client.start(layered(40, 3))
        await fleet.advance(at)
        async with MemoryBroker(fleet.server, name="doctor") as broker:
            rebuilt = await rebuild(broker)
        assert rebuilt.shards == 1
        assert await run.wait(timeout="5m") is WorkflowState.COMPLETED
        assert workers.executions == 120
        attempts = Counter([(row.node, row.status) async for row in run.attempts()])
        assert set(attempts.values()) == {1}
        assert len(attempts) == 120


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_what_a_rebuild_left_with_an_agent_that_dies_runs_elsewhere(dies: str) -> None:
    workers = Workers(seconds=10.0)
    async with TestFleet(agents=[workers.agent], replicas=2) as fleet:
        run = await fleet.client.start(layered(12, 1))
        await fleet.advance(2)
        assert workers.executions == 12

        async with MemoryBroker(fleet.server, name="doctor") as broker:
            await broker.delete_queue(task_queue("work", Priority.P1))
            if dies == "before":
                fleet.kill(fleet.agents[0].id)
                await fleet.advance(8)
            await rebuild(broker)
            if dies == "after":
                fleet.kill(fleet.agents[0].id)
            await fleet.add(workers.agent)

            assert await run.wait(timeout="5m") is WorkflowState.COMPLETED
        assert workers.executions > 12
        assert fleet.elapsed_seconds < (90 if dies == "before" else 40)
        ends = Counter([row.node async for row in run.attempts() if row.status == "completed"])
        assert len(ends) == 12
        assert set(ends.values()) == {1}


AWAY_SECONDS = 10
"""Longer than an agent's lease in the registry: when the dispatcher is back, nothing lists the dead agent."""
SOON_SECONDS = 15.0
"""Well below the minute after which a key that nobody renews is free."""


class LastingFleet(TestFleet):
    """A fleet whose dispatcher finds its store again when it comes back, and has no management API.

    With one, it would find the dead by their queues as well.
    """

    def _control_planes(self) -> Mapping[str, Callable[..., AbstractAsyncContextManager[Any]]]:
        disk = Disk()

        @asynccontextmanager
        async def dispatcher(*, owner: str, **ports: Any) -> AsyncIterator[Any]:
            options = DispatcherOptions(shards=1, owner=owner)
            async with (
                SimulatedDatabase(disk) as database,
                running_dispatcher(database=database, options=options, **ports | {"evict": None}) as running,
            ):
                yield running

        return {"dispatcher": dispatcher}


def builder(started: list[str], concurrency: tuple[str, int] | None = ("{input}", 1)) -> Agent:
    agent = Agent("builder", slots=2)

    @agent.capability("repo.build", concurrency=concurrency)
    async def build(repo: str, ctx: Context) -> str:
        started.append(ctx.agent_id)
        await asyncio.sleep(20.0)
        return ctx.agent_id

    return agent


async def test_keys_of_an_agent_that_died_while_no_dispatcher_was_there_are_soon_free() -> None:
    started: list[str] = []
    async with LastingFleet(agents=[builder(started)], replicas=2) as fleet:
        handle = await fleet.submit("repo.build", "search")
        await fleet.advance("1s")
        (holder,) = started
        fleet.kill("dispatcher")
        fleet.kill(holder)
        await fleet.advance(f"{AWAY_SECONDS}s")

        await fleet.restart("dispatcher")
        back = fleet.elapsed_seconds
        while len(started) == 1:
            await asyncio.sleep(0.1)

        assert fleet.elapsed_seconds - back < SOON_SECONDS
        assert await handle.result(str) == started[1] != holder


async def grant_late(fleet: TestFleet, run: WorkflowRun, dead: str) -> None:
    """A request of an agent that is gone by now is answered, and takes the node from whoever works on it."""
    *_, last = [row async for row in run.attempts()]
    owner = Owner(run.id, last.node, "0", last.fence)
    body = claim_body(owner, publication=last.publication, agent=AgentId(dead), running=False)
    async with MemoryBroker(fleet.server, name="late") as broker:
        message = request(Verb.CLAIM, body, reply_to=f"reply.{dead}", correlation_id="late")
        await broker.publish(message, exchange=routing.CONTROL, routing_key="0")
    await fleet.advance("0.1s")
    *_, last = [row async for row in run.attempts()]
    assert (last.agent, last.status) == (dead, "working")


@pytest.mark.parametrize("unseen", [False, True], ids=["before", "while no dispatcher was there"])
async def test_task_that_is_granted_to_a_dead_agent_is_published_again(unseen: bool) -> None:
    started: list[str] = []
    flow = Workflow("late")
    flow.task("repo.build", "search", name="build", retry=Retry(max_attempts=5))
    async with LastingFleet(agents=[builder(started, None)], replicas=2) as fleet:
        run = await fleet.client.start(flow)
        await fleet.advance("1s")
        (dead,) = started
        fleet.kill(dead)
        if not unseen:
            await fleet.advance(f"{AWAY_SECONDS}s")
        await grant_late(fleet, run, dead)
        if unseen:
            fleet.kill("dispatcher")
            await fleet.advance(f"{AWAY_SECONDS}s")
            await fleet.restart("dispatcher")

        begun = len(started)
        await fleet.advance(f"{SOON_SECONDS}s")

        assert len(started) == begun + 1
        assert await run.wait(timeout="2m") is WorkflowState.COMPLETED
