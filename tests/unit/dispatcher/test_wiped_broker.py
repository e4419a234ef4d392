"""The whole fleet in memory and in virtual time, and a broker that comes back empty."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from coditect import Agent, Context, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.model.capability import Priority
from coditect.operations.rebuild import rebuild
from coditect.testing import TestFleet
from coditect.wire.routing import task_queue
from coditect.workflow.states import WorkflowState


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


def layered(width: int, depth: int) -> Workflow:
    flow = Workflow("layered")
    layer = [flow.task("work", {"n": 1}, name=f"l0n{number}") for number in range(width)]
    for level in range(1, depth):
        layer = [
            flow.task("work", {"n": 1}, name=f"l{level}n{number}", after=[layer[number], layer[number - 1]])
            for number in range(width)
        ]
    return flow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dies", [False, True])
async def test_workflow_ends_and_no_node_has_two_outcomes(seed: int, dies: bool) -> None:
    workers = Workers()
    async with TestFleet(agents=[workers.agent], seed=seed, replicas=2) as fleet:
        run = await fleet.client.start(layered(20, 5))
        await fleet.advance(
            1.0
        )  # amid the naps of a layer: at 0.9 all of one may have ended, and none of the next begun
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at", [0.02, 0.5, 0.65])
async def test_rebuild_on_demand_of_a_healthy_fleet_executes_nothing_twice(seed: int, at: float) -> None:
    workers = Workers()
    async with TestFleet(agents=[workers.agent], seed=seed, replicas=2) as fleet:
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


async def test_rebuild_on_demand_publishes_anew_what_waits_and_the_older_is_dropped() -> None:
    workers = Workers(seconds=5.0)
    async with TestFleet(agents=[workers.agent]) as fleet:
        run = await fleet.client.start(layered(20, 1))
        await fleet.advance(4)
        begun = workers.executions
        assert 0 < begun < 20

        async with MemoryBroker(fleet.server, name="doctor") as broker:
            rebuilt = await rebuild(broker)

        assert rebuilt.counts["published"] == 20 - begun
        assert await run.wait(timeout="5m") is WorkflowState.COMPLETED
        assert workers.executions == 20


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_what_a_rebuild_left_with_an_agent_runs_elsewhere_when_the_queue_is_lost_and_the_agent_dies(
    dies: str,
) -> None:
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
