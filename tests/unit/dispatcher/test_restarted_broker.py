"""Workflow tasks that the broker delivers again: an attempt is used up only if its agent died."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect import Agent, Context, Retry, Workflow
from coditect.client.workflow_run import Run
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.nodes.attempts import FREE_LOSSES


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


async def reasons(run: Run) -> list[str]:
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
@pytest.mark.parametrize("seed", range(2))
async def test_delivery_that_a_living_agent_lost_uses_up_no_attempt(seed: int, retry: Retry | None, fault: Any) -> None:
    builders = Builders()
    async with TestFleet(agents=[builders.agent], seed=seed, replicas=4) as fleet:
        run = await fleet.client.start(lone(retry))
        for _ in range(5):
            await fleet.advance("4s")
            await fault(fleet)

        assert await run.wait(timeout="20m") is WorkflowState.COMPLETED
        assert "process_died" not in await reasons(run)
        assert set(builders.begun) == {1}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("seconds", [0.01, 0.3, 20.0], ids=str)
@pytest.mark.parametrize(("own", "most"), [(Retry(max_attempts=4), 4), (None, 2)], ids=["node's", "capability's"])
async def test_task_that_kills_each_of_its_agents_is_stopped_by_its_policy(
    own: Retry | None, most: int, seconds: float, seed: int
) -> None:
    builders = Builders(seconds, retry=Retry(max_attempts=2))
    async with TestFleet(agents=[builders.agent], seed=seed, replicas=12) as fleet:
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
async def test_task_that_a_drain_breaks_off_goes_to_another_agent_without_an_attempt(
    retry: Retry | None, cleanup_seconds: float
) -> None:
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
    flow = Workflow("wide")
    for number in range(8):
        flow.task("repo.build", "search", name=f"n{number}", retry=Retry(max_attempts=2))
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
