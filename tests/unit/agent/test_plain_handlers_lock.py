"""Locks of plain handlers: held inside of `with`, renewed by the agent's loop, and refused in a process of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from coditect import Agent, Context, PlainContext, Retry, TaskFailed
from coditect.errors import LockLost, LockTaken
from coditect.testing import TestFleet
from tests.support import eventually

ONCE = Retry(max_attempts=1)


class Deployers:
    """An agent whose plain handlers lock one site; a handler sets `inside` when it holds the lock."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.lost = ""
        self.agent = Agent("deployer", slots=2)
        self.agent.capability("site.deploy", retry=ONCE, timeout="10m")(self.deploy)
        self.agent.capability("site.wait", retry=ONCE, timeout="10m")(self.wait)
        self.agent.capability("site.fail", retry=ONCE)(self.fail)

    def deploy(self, terms: dict[str, Any], ctx: PlainContext) -> int:
        """Return the fence."""
        with ctx.lock("site:shop", **terms) as lock:
            return lock.fence

    def wait(self, _: None, ctx: PlainContext) -> str:
        """Hold the lock until it is lost."""
        try:
            with ctx.lock("site:shop", ttl="5s") as lock:
                self.inside.set()
                began = time.monotonic()
                while not lock.lost and time.monotonic() < began + 60:
                    time.sleep(0.01)
                self.lost = lock.lost
        except LockLost as error:
            return str(error.facts["reason"])
        return "kept"

    def fail(self, _: None, ctx: PlainContext) -> None:
        """Fail inside of the block."""
        with ctx.elect("site"):
            raise ValueError("broken site")


async def test_each_grant_of_a_plain_handler_has_a_higher_fence_and_a_failed_block_leaves_no_lock() -> None:
    deployers = Deployers()
    async with TestFleet(agents=[deployers.agent]) as fleet:
        with pytest.raises(TaskFailed, match="broken site"):
            await fleet.request("site.fail", None)
        fences = [await fleet.request("site.deploy", {}, int) for _ in range(3)]

        assert fences == sorted(set(fences))
        assert [row async for row in fleet.client.locks()] == []


async def test_a_plain_handler_that_took_the_context_of_an_async_one_is_given_the_right_one() -> None:
    wrong = Agent("wrong")

    @wrong.capability("site.wrong", retry=3)
    def deploy(_: None, ctx: Context) -> None:
        with ctx.lock("site:shop"):
            raise AssertionError("the lock was entered")

    async with TestFleet(agents=[wrong]) as fleet:
        with pytest.raises(TaskFailed, match="ctx: PlainContext") as failed:
            await fleet.request("site.wrong", None)

    assert failed.value.facts["attempt"] == 1


async def test_a_lock_that_others_have_is_refused_or_waited_for_in_the_thread() -> None:
    deployers = Deployers()
    async with TestFleet(agents=[deployers.agent]) as fleet:
        async with fleet.client.lock("site:shop") as lock:
            with pytest.raises(TaskFailed, match=LockTaken.__name__):
                await fleet.request("site.deploy", {"wait": False})
            waiting = await fleet.submit("site.deploy", {})
            await eventually(lambda: fleet.elapsed_seconds > 20)

        assert await waiting.result(int) > lock.fence


async def test_a_plain_handler_whose_lock_is_released_by_force_sees_it_and_gets_the_loss_at_the_end_of_its_block() -> (
    None
):
    deployers = Deployers()
    async with TestFleet(agents=[deployers.agent], stuck_after="200ms") as fleet:
        handle = await fleet.submit("site.wait", None)
        await eventually(deployers.inside.is_set)
        assert await fleet.client.release_locks("site:shop", reason="it hangs") == 1

        assert "it hangs" in await handle.result(str)
    assert "it hangs" in deployers.lost
