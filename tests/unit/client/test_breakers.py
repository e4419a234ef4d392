"""Breakers of clients, beside those of the agents of a fleet."""

from __future__ import annotations

import pytest

from coditect import Agent, Breaker, BreakerOpen
from coditect.errors import InputError
from coditect.operations.explain import Obstacle, TaskQuestion, explain
from coditect.registry.port import Search
from coditect.testing import TestFleet

worker = Agent("worker")


@worker.capability("code.review", breaker=Breaker("github", failures=3, reset="10s"))
async def review(number: int) -> int:
    return number


GITHUB = Breaker("github", failures=3, reset="10s", on=(OSError,))


async def trip(fleet: TestFleet) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match="down"):
            async with fleet.client.breaker(GITHUB):
                raise OSError("down")


async def test_a_trip_of_a_client_lets_the_tasks_of_agents_wait_and_why_not_says_so() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        await trip(fleet)
        await fleet.advance("2s")
        await fleet.submit("code.review", 1)
        await fleet.advance("1s")
        explained = explain(TaskQuestion("code.review"), await fleet.registry.find(Search()), ())

    assert [one.obstacle for one in explained.agents] == [Obstacle.BREAKER_OPEN]
    assert "the breaker github is open" in explained.agents[0].text


async def test_an_operator_opens_a_breaker_for_the_whole_fleet_until_it_is_reset() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        async with fleet.client.breaker(GITHUB):
            pass
        await fleet.client.breakers.open("github", reason="maintenance")
        await fleet.advance("1s")
        handle = await fleet.submit("code.review", 7)
        await fleet.advance("10m")
        with pytest.raises(BreakerOpen) as refused:
            await fleet.client.breaker("github").__aenter__()
        (row,) = [row async for row in fleet.client.breakers.list()]
        waited = not handle.done

        await fleet.client.breakers.reset("github", reason="done")
        assert await handle.result(timeout="5s") == 7
        async with fleet.client.breaker("github"):
            pass

    assert waited
    assert refused.value.facts["retry_after_seconds"] is None
    assert (row.state.open, row.state.reason, row.due_ms) == (True, "maintenance", None)


async def test_without_a_control_plane_a_breaker_opens_and_closes_in_its_process_alone() -> None:
    async with TestFleet(agents=[worker]) as fleet:
        fleet.kill("dispatcher")
        await trip(fleet)
        with pytest.raises(BreakerOpen):
            await fleet.client.breaker("github").__aenter__()
        await fleet.advance("10s")

        async with fleet.client.breaker("github"):
            pass
        async with fleet.client.breaker("github"):
            pass


def test_one_agent_declares_a_breaker_once() -> None:
    agent = Agent("a", breakers=[Breaker("github")])
    agent.capability("x", breaker="github")

    with pytest.raises(Exception, match="declares a breaker once"):
        agent.capability("y", breaker=Breaker("github", failures=9))
    with pytest.raises(Exception, match="behind a breaker"):
        agent.capability("z", fallback="x")
    with pytest.raises(InputError):
        Breaker("")
