"""A handler that swallows its cancellation: the task ends, and the agent's process is replaced if it keeps the slot."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from coditect import Agent, Context, Retry, TaskCanceled
from coditect.agent.runtime import STUCK_SECONDS, SWALLOWED_SECONDS, HandlerStuck
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.unit.agent.scene import failure_of

ONCE = Retry(max_attempts=1)
NAMES = {"never.ends": "never_ends", "never.end": "never_ends_for_all"}


class Deaf:
    """An agent with a handler that ignores every cancellation until it is freed."""

    def __init__(self) -> None:
        self.free = False
        self.calls = 0
        """Of the handler of batches."""
        self.begun: list[tuple[int, int]] = []
        """Of the neighbors: for how many seconds, and as which attempt."""
        self.agent = Agent("deaf", slots=3, reserve=0)

        @self.agent.capability("never.ends", timeout="6s", retry=ONCE)
        async def never_ends(_: Any) -> str:
            while not self.free:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
            return "late"

        @self.agent.capability("never.end", timeout="6s", retry=ONCE, batch=2, within="10ms")
        async def never_ends_for_all(tasks: list[Any]) -> list[str]:
            self.calls += 1
            return [await never_ends(task) for task in tasks]

        @self.agent.capability("good.one")
        async def good(number: int) -> int:
            return number

        @self.agent.capability("slow.one", timeout="10m", retry=ONCE)
        async def slow(seconds: int, ctx: Context) -> str:
            self.begun.append((seconds, ctx.attempt))
            await asyncio.sleep(seconds)
            return ctx.agent_id


@pytest.mark.parametrize("capability", ["never.ends", "never.end"])
@pytest.mark.parametrize("durable", [False, True])
async def test_deadline_ends_the_task_whose_handler_swallows_its_cancellation(durable: bool, capability: str) -> None:
    deaf = Deaf()
    async with TestFleet(agents=[deaf.agent]) as fleet:
        handle = await fleet.client.submit(capability, None, durable=durable)
        failure = await failure_of(handle, "1h")

        assert fleet.elapsed_seconds < 6 + SWALLOWED_SECONDS + 5
        assert (failure.reason, failure.type) == ("timeout", "TimeoutError")
        assert "within its time (6 s)" in failure.message
        assert f"{NAMES[capability]} does not end when it is canceled" in failure.message
        assert f"it stands at {__file__}:" in failure.message
        assert "await asyncio.sleep(1)" in failure.traceback
        deaf.free = True
        await fleet.advance("10s")
        assert await failure_of(handle, "1h") == failure, "its late value is ignored"
        assert fleet.agents[0].load.running == 0


@pytest.mark.parametrize("capability", ["never.ends", "never.end"])
async def test_canceled_task_ends_though_its_handler_does_not(capability: str) -> None:
    deaf = Deaf()
    async with TestFleet(agents=[deaf.agent]) as fleet:
        handle = await fleet.client.submit(capability, None)
        await asyncio.sleep(1)
        await handle.cancel(reason="not wanted")
        with pytest.raises(TaskCanceled):
            await handle.result(timeout="1h")
        assert fleet.elapsed_seconds < SWALLOWED_SECONDS + 3
        deaf.free = True
        await fleet.advance("10s")


async def test_calls_with_batches_that_swallow_their_cancellation_are_no_more_than_the_slots() -> None:
    deaf = Deaf()
    async with TestFleet(agents=[deaf.agent]) as fleet:
        handles = [await fleet.client.submit("never.end", number) for number in range(12)]
        await handles[0].outcome(timeout="1h")
        await handles[0].cancel()
        await fleet.advance("20s")

        assert deaf.calls <= 3
        assert fleet.agents[0].load.running == 3
        deaf.free = True
        await fleet.advance("10s")


@pytest.mark.parametrize("capability", ["never.ends", "never.end"])
async def test_agent_that_a_handler_does_not_leave_ends_so_that_it_is_started_again(capability: str) -> None:
    deaf = Deaf()
    async with TestFleet(agents=[deaf.agent]) as fleet:
        process = fleet.agents[0]
        failing = asyncio.ensure_future(process.health.failure())
        await (await fleet.client.submit(capability, None)).outcome(timeout="1h")
        error = await failing

        assert isinstance(error, HandlerStuck)
        assert f"{NAMES[capability]} does not end when it is canceled" in str(error)
        assert fleet.elapsed_seconds < 6 + SWALLOWED_SECONDS + STUCK_SECONDS + 5
        (again,) = await fleet.restart("deaf")
        assert await fleet.request("good.one", 5, timeout="1m") == 5
        assert again.load.running == 0
        deaf.free = True
        await fleet.advance("10s")


@pytest.mark.parametrize("durable", [False, True])
async def test_neighbor_of_a_stuck_handler_finishes_in_the_drain_or_repeats_the_same_attempt(durable: bool) -> None:
    deaf = Deaf()
    async with TestFleet(agents=[deaf.agent], settings=Settings(drain_seconds=30)) as fleet:
        (stuck,) = fleet.agents
        try:
            await fleet.client.submit("never.ends", None)
            await fleet.advance("30s")
            short, long = [await fleet.client.submit("slow.one", seconds, durable=durable) for seconds in (25, 300)]
            assert await short.result(str, timeout="1m") == stuck.id
            assert fleet.elapsed_seconds > 6 + SWALLOWED_SECONDS + STUCK_SECONDS, "it ended after the replacement began"
            assert stuck.work is not None
            with pytest.raises(HandlerStuck):
                await asyncio.wait_for(stuck.work, 60)
            (again,) = await fleet.restart("deaf")

            assert await long.result(str, timeout="10m") == again.id
            assert deaf.begun == [(25, 1), (300, 1), (300, 1)]
        finally:
            deaf.free = True
            await fleet.advance("10s")
