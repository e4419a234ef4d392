"""Handoffs while processes die, stand still or lose their connections, in virtual time: each task has one result."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from random import Random
from typing import Any

import pytest

from coditect import Agent, Context, HandoffOffer, Retry, Workflow
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState

TASKS = 6
PLANE = "dispatcher"


def cast(random: Random, begun: list[tuple[str, int, str]]) -> list[Agent]:
    """Agents that hand off and take over after a while, and note under which fence each begins a task."""
    asker, taker = Agent("asker", slots=4), Agent("taker", slots=4)

    @asker.capability("job.begin", timeout="10m")
    async def begin(number: int, ctx: Context) -> dict[str, Any]:
        begun.append((ctx.task_id, ctx.fence, ctx.agent_id))
        await asyncio.sleep(3 * random.random())
        async with ctx.lock(f"job:{number}", ttl="2s", timeout="5m"):
            handoff = await ctx.hand_off("job.finish", context=number, timeout="20s")
            await asyncio.sleep(random.random())
            return {"fence": ctx.fence, "state": handoff.state}

    @taker.capability("job.finish", timeout="10m")
    async def finish(number: int, ctx: Context) -> dict[str, Any]:
        begun.append((ctx.task_id, ctx.fence, ctx.agent_id))
        async with ctx.lock(f"job:{number}", ttl="2s", timeout="5m"):
            await asyncio.sleep(3 * random.random())
            return {"fence": ctx.fence, "state": "accepted"}

    @taker.on_handoff
    async def decide(offer: HandoffOffer) -> bool | None:
        await asyncio.sleep(2 * random.random())
        return None if random.random() < 0.7 else False

    return [asker, taker]


def job(number: int) -> Workflow:
    flow = Workflow(f"job-{number}")
    flow.task("job.begin", number, name="job", retry=Retry(max_attempts=30, first="1s", cap="2s"))
    return flow


async def trouble(fleet: TestFleet, random: Random) -> None:
    """Processes die, stand still and lose their connections for a while."""
    for _ in range(8):
        await asyncio.sleep(2 * random.random())
        victim = random.choice(("asker", "taker", "taker", PLANE))
        match random.choice(("kill", "kill", "pause", "drop")):
            case "kill" if victim != PLANE:  # the store in memory would go with it
                await fleet.restart(victim)
            case "pause":
                fleet.pause(victim)
                await asyncio.sleep(6 * random.random())
                fleet.resume(victim)
            case _:
                fleet.drop_connections(victim)


@pytest.mark.parametrize("seed", range(4))
async def test_each_task_has_one_result_and_each_fence_one_owner(seed: int) -> None:
    random, begun = Random(seed), list[tuple[str, int, str]]()
    async with TestFleet(agents=cast(random, begun), seed=seed, replicas={"asker": 1, "taker": 2}) as fleet:
        runs = [await fleet.client.start(job(number)) for number in range(TASKS)]
        await trouble(fleet, random)
        ends = [await run.wait(timeout="1h") for run in runs]
        values = [await run.result(dict) for run in runs]
        rows = [row async for row in fleet.client.handoffs.list()]
        attempts = {f"{run.id}:job": [row async for row in run.attempts()] for run in runs}
        fleet.forgive_crashes()

    owners = defaultdict[tuple[str, int], set[str]](set)
    for task, fence, agent in begun:
        owners[task, fence].add(agent)
    assert ends == [WorkflowState.COMPLETED] * TASKS
    assert [key for key, agents in owners.items() if len(agents) > 1] == []
    assert rows
    assert not any(row.state == "requested" for row in rows)
    for value, (task, history) in zip(values, attempts.items(), strict=True):
        fences = [one.fence for one in history]
        assert fences == sorted(set(fences))
        assert [one.status for one in history].count("completed") == 1
        assert history[-1].status == "completed"
        assert value["fence"] <= fences[-1]  # an execution that was granted again keeps the fence that it began with
        accepted = [row for row in rows if row.task == task and row.state == "accepted"]
        assert [one.fence for one in history if one.status == "handed_off"] == [row.fence for row in accepted]
