"""What leaving the fleet does and tells."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coditect import Agent, Context
from coditect.errors import SetupError
from coditect.testing import FleetCrashed, TestFleet
from tests.unit.testing.workers import Sleepers


def careless() -> Agent:
    """An agent whose listener fails, and whose handler leaves a task of its own behind."""
    agent = Agent("careless")

    @agent.on_broadcast("news")
    async def hear(_: object) -> None:
        raise ValueError("bad news")

    @agent.capability("careless.start")
    async def start(_: None, ctx: Context) -> None:
        async def fail() -> None:
            raise KeyError("nobody awaits me")

        ctx.left_behind = asyncio.create_task(fail())  # type: ignore[attr-defined]

    return agent


@pytest.mark.parametrize(
    ("crash", "error"),
    [
        (lambda fleet: fleet.client.broadcast("news"), "ValueError('bad news')"),
        (lambda fleet: fleet.request("careless.start"), "KeyError('nobody awaits me')"),
    ],
    ids=["in the background", "of a task that nobody awaits"],
)
async def test_crash_fails_the_test(crash: Callable[[TestFleet], Awaitable[Any]], error: str) -> None:
    with pytest.raises(FleetCrashed) as crashed:
        async with TestFleet(agents=[careless()]) as fleet:
            await crash(fleet)
            await fleet.settled()

    assert list(map(repr, crashed.value.exceptions)) == [error]


async def test_crash_is_a_note_of_the_test_s_own_error_and_can_be_forgiven() -> None:
    with pytest.raises(AssertionError, match="mine") as failed:
        async with TestFleet(agents=[careless()]) as fleet:
            await fleet.client.broadcast("news")
            await fleet.settled()
            raise AssertionError("mine")

    assert any("bad news" in note for note in failed.value.__notes__)

    async with TestFleet(agents=[careless()]) as fleet:
        await fleet.client.broadcast("news")
        await fleet.settled()

        [forgiven] = fleet.forgive_crashes()

    assert isinstance(forgiven, ValueError)


async def test_failing_handler_is_no_crash() -> None:
    async with TestFleet(agents=[Sleepers().agent]) as fleet:
        outcome = await (await fleet.submit("sleep.well", -1)).outcome()

        assert outcome.failure is not None and outcome.failure.reason == "handler_error"
        assert fleet.crashes == ()


async def test_end_is_quick_and_quiet_with_tasks_in_flight(caplog: pytest.LogCaptureFixture) -> None:
    sleepers = Sleepers(slots=50)
    began = time.monotonic()
    async with TestFleet(agents=[sleepers.agent], replicas=2) as fleet:
        for _ in range(60):
            await fleet.submit("sleep.well", 1_000)
        await fleet.settled()
        fleet.pause("sleeper-2")

    assert time.monotonic() - began < 10
    assert sorted(sleepers.left) == sorted(sleepers.started), "their coroutines are ended"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_loop_is_as_it_was_afterwards() -> None:
    loop = asyncio.get_running_loop()
    before = set(vars(loop))

    async with TestFleet(agents=[Sleepers().agent]) as fleet:
        await fleet.submit("sleep.well", 5)

    assert set(vars(loop)) == before
    assert "select" not in vars(vars(loop)["_selector"])


async def test_agent_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    def refuse(*_: object, **__: object) -> None:
        raise SetupError("no")

    monkeypatch.setattr("coditect.testing.fleet.running_agent", refuse)
    with pytest.raises(SetupError):
        async with TestFleet(agents=[Sleepers().agent]):
            pass

    assert "time" not in vars(loop)


async def test_fleet_that_is_not_open_says_so() -> None:
    fleet = TestFleet(agents=[Sleepers().agent])
    with pytest.raises(SetupError, match="async with TestFleet"):
        fleet.kill("sleeper")
