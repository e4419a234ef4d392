"""Locks of plain handlers: held inside of `with`, and renewed by the agent's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from coditect import Agent, Context, PlainContext, Retry, TaskFailed
from coditect.errors import LockLost, LockTaken
from coditect.testing import TestFleet
from tests.support import eventually

ONCE = Retry(max_attempts=1)


class Deployers:
    """An agent whose plain handlers lock one site."""

    def __init__(self) -> None:
        self.release: Callable[[], Awaitable[int]] | None = None
        """What `site.release` does, whose handler runs on the event loop."""
        self.lost = ""
        self.agent = Agent("deployer", slots=2)
        self.agent.capability("site.deploy", retry=ONCE, timeout="10m")(self.deploy)
        self.agent.capability("site.hold", retry=ONCE, timeout="10m")(self.hold)
        self.agent.capability("site.release", retry=ONCE)(self.release_it)
        self.agent.capability("site.fail", retry=ONCE)(self.fail)

    def deploy(self, terms: dict[str, Any], ctx: PlainContext) -> int:
        """Return the fence."""
        with ctx.lock("site:shop", **terms) as lock:
            return lock.fence

    def hold(self, _: None, ctx: PlainContext) -> str:
        """Hold the lock while another handler releases it by force."""
        try:
            with ctx.lock("site:shop", ttl="5s") as lock:
                ctx.request("site.release")
                self.lost = lock.lost
        except LockLost as error:
            return str(error.facts["reason"])
        return "kept"

    async def release_it(self, _: None) -> int:
        """Release the lock, and give the loss time to be told."""
        assert self.release is not None
        released = await self.release()
        await asyncio.sleep(2)
        return released

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
        assert [row async for row in fleet.client.locks.list()] == []


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


async def test_plain_handler_whose_lock_is_released_sees_it_and_gets_the_loss_at_the_end_of_its_block() -> None:
    deployers = Deployers()
    async with TestFleet(agents=[deployers.agent]) as fleet:
        deployers.release = partial(fleet.client.locks.release_all, "site:shop", reason="it hangs")

        told = await fleet.request("site.hold", None, str)

    assert "it hangs" in deployers.lost
    assert "it hangs" in told


async def test_a_plain_handler_that_waits_for_a_lock_that_it_holds_itself_gets_a_deadlock() -> None:
    nested = Agent("nested")

    @nested.capability("site.nest", retry=ONCE)
    def nest(_: None, ctx: PlainContext) -> None:
        with ctx.lock("site:shop"), ctx.lock("site:blog"), ctx.lock("site:shop"):
            raise AssertionError("the lock was granted twice")

    async with TestFleet(agents=[nested]) as fleet:
        outcome = await (await fleet.submit("site.nest")).outcome(timeout="1m")

        assert outcome.failure is not None
        assert outcome.failure.type == "Deadlock"
        assert "site:shop" in outcome.failure.message
