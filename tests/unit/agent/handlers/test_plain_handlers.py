"""`PlainContext`: a plain handler asks other agents, emits events and holds locks, in a thread or a process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from coditect import Agent, Context, PlainContext, Retry
from coditect.errors import LockLost, LockTaken, TaskCanceled, TaskFailed, UnknownCapability
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.support import eventually
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


def recursive(*, slots: int = 1) -> Agent:
    """Asks itself `depth` times, from a thread each."""
    agent = Agent("plain", slots=slots)

    @agent.capability("plain.down", timeout="60s")
    def down(depth: int, ctx: PlainContext) -> int:
        if depth == 0:
            return 1
        return 1 + ctx.request("plain.down", depth - 1, int, timeout="60s")

    return agent


class Asking:
    """An agent whose plain handler asks for what takes `seconds`, and notes how that ended."""

    def __init__(self, seconds: float, *, timeout: str = "5m") -> None:
        self.ended: list[str] = []
        self.children = 0
        self.agent = Agent("asking", slots=2)

        @self.agent.capability("asking.child", retry=ONCE)
        async def child(_: None) -> str:
            self.children += 1
            await asyncio.sleep(seconds)
            return "grown up"

        @self.agent.capability("asking.parent", timeout=timeout, retry=ONCE)
        def parent(_: None, ctx: PlainContext) -> str:
            for _twice in range(2):
                try:
                    return ctx.request("asking.child", None, str, timeout="10m")
                except TaskCanceled:
                    self.ended.append("canceled")
            return "asked in vain"


@pytest.mark.parametrize("slots", [1, 3])
async def test_fleet_of_plain_handlers_that_ask_each_other_does_not_deadlock(slots: int) -> None:
    async with TestFleet(agents=[recursive(slots=slots)]) as fleet:
        handles = [await fleet.submit("plain.down", 5) for _ in range(6)]

        assert [await handle.result(int) for handle in handles] == [6] * 6


async def test_wait_of_a_thread_lets_virtual_time_go_on() -> None:
    asking, began = Asking(86_400), time.monotonic()
    async with TestFleet(agents=[asking.agent]) as fleet:
        with pytest.raises(TaskFailed):
            await fleet.request("asking.parent", None, timeout="1d")

        assert fleet.elapsed_seconds >= 300
    assert time.monotonic() - began < 4, "no thread was waited for"


async def test_time_of_the_answer_does_not_count_to_the_time_limit_of_the_handler() -> None:
    asking = Asking(120, timeout="1s")
    async with TestFleet(agents=[asking.agent]) as fleet:
        assert await fleet.request("asking.parent", None, str, timeout="1h") == "grown up"


async def test_canceled_handler_is_told_at_its_call_and_its_child_is_withdrawn(scene: Scene) -> None:
    asking = Asking(60)
    running = await scene.start(asking.agent)
    handle = await scene.submit("asking.parent")
    await eventually(lambda: asking.children == 1)

    await handle.cancel(reason="enough")

    with pytest.raises(TaskCanceled):
        await handle.result(timeout="10s")
    await eventually(lambda: asking.ended == ["canceled", "canceled"])
    await eventually(lambda: running.runtime.load().running == 0)
    assert asking.children == 1, "a call after the cancel asks for nothing"


async def test_task_above_the_bound_of_waiting_tasks_goes_back_and_is_done_later() -> None:
    asking = Asking(5)
    async with TestFleet(agents=[asking.agent], settings=Settings(max_suspended=1)) as fleet:
        handles = [await fleet.submit("asking.parent", deadline="1h") for _ in range(4)]

        assert [await handle.result(str) for handle in handles] == ["grown up"] * 4


async def test_errors_of_a_request_reach_the_plain_handler() -> None:
    agent = Agent("curious")

    @agent.capability("curious.ask")
    def ask(_: None, ctx: PlainContext) -> str:
        try:
            ctx.request("nobody.does")
        except UnknownCapability:
            return "nobody"
        return "somebody"

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("curious.ask", None, str) == "nobody"


async def test_events_of_a_plain_handler_reach_their_listeners() -> None:
    agent = Agent("teller")

    @agent.capability("teller.tell")
    def tell(_: None, ctx: PlainContext) -> str:
        ctx.progress(0.5, "half")
        ctx.emit("page.printed", copies=2)
        return threading.current_thread().name

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.submit("teller.tell")
        assert (await handle.result(str)).startswith("teller")
        await fleet.settled()
        told = {event.type: (event.subject, event.data) for event in fleet.events}

    assert told["page.printed"] == (handle.task_id, {"copies": 2})
    assert told["task.progress"][1]["note"] == "half"


def plain(task: int, ctx: Any) -> None: ...
def unannotated(task, ctx): ...  # type: ignore[no-untyped-def]
def sync(task: int, ctx: PlainContext) -> None: ...
def old(task: int, ctx: Context) -> None: ...
async def unannotated_async(task, ctx): ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("handler", "blocking"),
    [(plain, True), (unannotated, True), (sync, True), (old, False), (unannotated_async, False)],
)
def test_plain_handler_gets_waiting_methods_unless_it_asks_for_the_others(handler: Any, blocking: bool) -> None:
    agent = Agent("kinds")

    agent.capability("kinds.one")(handler)

    assert agent.capabilities[0].signature.blocking is blocking


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
