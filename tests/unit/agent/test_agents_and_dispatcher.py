"""Agents and the real dispatcher together, in virtual time: one death, one more execution, one outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from coditect import Agent, Context, Workflow
from coditect.testing import TestFleet

Fault = Callable[[TestFleet, str], object]


def sleeper() -> tuple[Agent, list[tuple[str, int, int]]]:
    """An agent that sleeps as long as it is told, and its runs: agent process, fence, attempt."""
    runs: list[tuple[str, int, int]] = []
    agent = Agent("sleeper", slots=2)

    @agent.capability("sleep.long", timeout="2h")
    async def sleep(seconds: float, ctx: Context) -> float:
        runs.append((ctx.agent_id, ctx.fence, ctx.attempt))
        await asyncio.sleep(seconds)
        return seconds

    return agent, runs


def flow(seconds: float) -> Workflow:
    one = Workflow("one")
    one.task("sleep.long", seconds, name="sleep", timeout="2h")
    return one


DIED, LOST = [(1, "process_died"), (2, "")], [(1, "delivery_lost"), (1, "")]
"""The attempts and their reasons, of an agent that died, and of one that lives and lost its delivery alone."""


@pytest.mark.parametrize(
    ("fault", "within_seconds", "attempts"),
    [(TestFleet.kill, 1.0, DIED), (TestFleet.pause, 5.0, DIED), (TestFleet.drop_connections, 1.0, LOST)],
    ids=["killed", "stopped", "cut off"],
)
async def test_agent_that_is_gone_costs_one_more_execution(
    fault: Fault, within_seconds: float, attempts: list[tuple[int, str]]
) -> None:
    agent, runs = sleeper()
    async with TestFleet(agents=[agent], replicas=2, seed=3) as fleet:
        run = await fleet.start(flow(30))
        await fleet.advance("2s")
        first = runs[0][0]

        fault(fleet, first)
        value = await run.result(timeout="1h")

        assert (value, len(runs), runs[0][1:]) == (30, 2, (1, 1))
        assert runs[1][0] != first
        assert runs[1][1] > 1, "a fence of its own"
        assert runs[1][2] <= attempts[-1][0], "it may begin before the death is known, as the same attempt"
        assert [(row.attempt, row.reason) async for row in run.attempts()] == attempts
        assert fleet.elapsed_seconds <= 2 + within_seconds + 30


async def test_long_node_of_a_killed_agent_is_done_elsewhere() -> None:
    agent, runs = sleeper()
    async with TestFleet(agents=[agent], replicas=2) as fleet:
        run = await fleet.start(flow(720))
        await fleet.advance("11m")

        fleet.kill(runs[0][0])
        await fleet.advance("5s")

        assert [attempt for _, _, attempt in runs] == [1, 2]
        await fleet.advance("12m")
        assert await run.result(timeout="5s") == 720
