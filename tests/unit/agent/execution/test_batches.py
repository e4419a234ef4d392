"""Batches: how they are gathered, and that each task of one is limited, retried, canceled and answered by itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from coditect import (
    Agent,
    CallNext,
    Context,
    MiddlewareContext,
    Retry,
    RetryAfter,
    TaskCanceled,
    TaskFailed,
    TaskRejected,
    Workflow,
)
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.process_agent import batcher
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


class Pool: ...


class Shop:
    """An agent whose batches a test can hold up; tells which batches it was given."""

    def __init__(self, *, batch: int = 4, slots: int = 9, retry: Retry | int = ONCE, timeout: str = "5m") -> None:
        self.batches: list[list[Any]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.canceled = 0
        self.agent = agent = Agent("shop", slots=slots)

        @agent.capability("shop.prices", batch=batch, within="2s", retry=retry, timeout=timeout)
        async def prices(things: list[str | int], contexts: list[Context]) -> list[int | Exception]:
            self.batches.append(things)
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.canceled += 1
                raise
            if "all" in things and contexts[0].attempt == 1:
                raise OSError("the shop is closed")
            return [self.price(thing, ctx) for thing, ctx in zip(things, contexts, strict=True)]

    def price(self, thing: str | int, ctx: Context) -> int | Exception:
        if thing == "broken":
            return ValueError("it is broken")
        if thing == "later" and ctx.attempt == 1:
            return RetryAfter("30s")
        return len(str(thing))


async def values(fleet: TestFleet, things: list[Any], **how: Any) -> list[Any]:
    handles = [await fleet.submit("shop.prices", thing, **how) for thing in things]
    return [await handle.result() for handle in handles]


async def test_full_batch_begins_at_once_and_a_rest_after_the_wait() -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent]) as fleet:
        before = fleet.elapsed_seconds
        assert await values(fleet, ["a", "bb", "ccc", "dddd"]) == [1, 2, 3, 4]
        assert fleet.elapsed_seconds - before < 1
        assert await values(fleet, ["a", "bb"]) == [1, 2]
        assert 2 <= fleet.elapsed_seconds - before < 3

    assert shop.batches == [["a", "bb", "ccc", "dddd"], ["a", "bb"]]


async def test_batch_is_no_larger_than_the_slots_of_the_process() -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent], settings=Settings(slots=4)) as fleet:
        before = fleet.elapsed_seconds
        assert await values(fleet, ["a", "b", "c"]) == [1, 1, 1]
        assert fleet.elapsed_seconds - before < 1, "three are full: one of the four slots is kept for P0"


async def test_error_of_the_call_fails_each_task_by_its_own_policy() -> None:
    shop = Shop(retry=Retry(max_attempts=2))
    async with TestFleet(agents=[shop.agent]) as fleet:
        assert await values(fleet, ["all", "b", "c", "d"]) == [3, 1, 1, 1]
        handles = [await fleet.submit("shop.prices", thing, max_attempts=1) for thing in ("all", "b")]
        for handle in handles:
            with pytest.raises(TaskFailed, match="the shop is closed"):
                await handle.result()

    assert sorted(map(str, [thing for batch in shop.batches for thing in batch])).count("all") == 3


async def test_returned_exception_or_input_that_does_not_fit_is_the_error_of_its_task_alone() -> None:
    shop = Shop(retry=Retry(max_attempts=2, on=(RetryAfter,)))
    async with TestFleet(agents=[shop.agent]) as fleet:
        before = fleet.elapsed_seconds
        handles = [await fleet.submit("shop.prices", thing) for thing in ("a", "broken", "later")]
        with pytest.raises(TaskRejected):
            await fleet.request("shop.prices", {"no": "thing"})
        assert await handles[0].result() == 1
        with pytest.raises(TaskFailed, match="it is broken"):
            await handles[1].result()
        assert fleet.elapsed_seconds - before < 5
        assert await handles[2].result() == 5
        assert fleet.elapsed_seconds - before >= 30

    assert shop.batches == [["a", "broken", "later"], ["later"]]


async def test_canceled_task_leaves_the_batch_and_the_last_one_ends_the_call() -> None:
    shop = Shop()
    shop.gate.clear()
    async with TestFleet(agents=[shop.agent]) as fleet:
        early = await fleet.submit("shop.prices", "early")
        await fleet.settled()
        await early.cancel()
        with pytest.raises(TaskCanceled):
            await early.result()
        handles = [await fleet.submit("shop.prices", thing) for thing in "abcd"]
        await eventually(lambda: shop.batches)
        await handles[0].cancel()
        with pytest.raises(TaskCanceled):
            await handles[0].result()
        assert shop.canceled == 0
        shop.gate.set()
        assert [await one.result() for one in handles[1:]] == [1, 1, 1]
        shop.gate.clear()
        last = await fleet.submit("shop.prices", "last")
        await eventually(lambda: len(shop.batches) == 2)
        await last.cancel()
        with pytest.raises(TaskCanceled):
            await last.result()
        assert shop.canceled == 1

    assert shop.batches == [["a", "b", "c", "d"], ["last"]]


async def test_time_limit_counts_for_each_task_and_ends_the_call_at_last() -> None:
    shop = Shop(timeout="10s")
    shop.gate.clear()
    async with TestFleet(agents=[shop.agent]) as fleet:
        quick = await fleet.submit("shop.prices", "a", timeout="4s")
        slow = await fleet.submit("shop.prices", "b")
        with pytest.raises(TaskFailed, match="within its time"):
            await quick.result()
        assert shop.canceled == 0
        with pytest.raises(TaskFailed, match="within its time"):
            await slow.result()
        assert (shop.canceled, shop.batches) == (1, [["a", "b"]])


async def test_levels_and_lanes_share_a_batch() -> None:
    shop = Shop()
    flow = Workflow("prices")
    flow.task("shop.prices", "node")
    async with TestFleet(agents=[shop.agent]) as fleet:
        run = await fleet.start(flow)
        handles = [await fleet.submit("shop.prices", level, priority=level) for level in ("p0", "p1", "p2")]
        assert [await one.result() for one in handles] == [2, 2, 2]
        assert await run.result() == 4

    assert [sorted(map(str, batch)) for batch in shop.batches] == [["node", "p0", "p1", "p2"]]


async def test_number_of_results_that_differs_fails_for_good() -> None:
    agent = Agent("shop")
    calls = []

    @agent.capability("shop.prices", batch=2, within="1ms", retry=3)
    async def prices(things: list[str]) -> list[int]:
        calls.append(things)
        return [1] * (len(things) + 1)

    async with TestFleet(agents=[agent]) as fleet:
        with pytest.raises(TaskFailed, match="one value, or exception, for each task"):
            await fleet.request("shop.prices", "tea")

    assert calls == [["tea"]]


class Classless:
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise LookupError("no class")


class Unreadable(list[Any]):
    def __iter__(self) -> Any:
        raise LookupError("no items")


class Short(list[Any]):
    def __iter__(self) -> Any:
        return iter(["only one"])


@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (lambda: ["fine", Classless()], [None, "handler_error"]),
        (Classless, ["handler_error"] * 2),
        (lambda: Unreadable("ab"), ["handler_error"] * 2),
        (lambda: Short("ab"), ["handler_error"] * 2),
    ],
)
async def test_batch_whose_result_cannot_be_read_ends_at_once(
    make: Callable[[], Any], reasons: list[str | None]
) -> None:
    agent = Agent("shop")

    @agent.capability("shop.prices", batch=2, retry=ONCE)
    async def prices(things: list[str]) -> Any:
        return make()

    async with TestFleet(agents=[agent]) as fleet:
        handles = [await fleet.submit("shop.prices", thing) for thing in "ab"]
        outcomes = [await handle.outcome(timeout="1h") for handle in handles]
        assert fleet.elapsed_seconds < 5

    assert [outcome.failure and outcome.failure.reason for outcome in outcomes] == reasons


async def test_handler_asks_others_for_each_of_its_tasks_and_holds_no_slot_meanwhile() -> None:
    agent = Agent("shop", slots=4, reserve=0)

    @agent.capability("shop.price")
    async def price(thing: str) -> int:
        return len(thing)

    @agent.capability("shop.prices", batch=4, within="1s")
    async def prices(things: list[str], contexts: list[Context]) -> list[int]:
        asked = (ctx.request("shop.price", thing, int) for thing, ctx in zip(things, contexts, strict=True))
        return await asyncio.gather(*asked)

    async with TestFleet(agents=[agent]) as fleet:
        assert await values(fleet, ["a", "bb", "ccc", "dddd"] * 3) == [1, 2, 3, 4] * 3


async def test_drain_ends_what_was_gathered_and_gives_back_what_outlasts_it() -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.agent]) as fleet:
        handles = [await fleet.submit("shop.prices", thing) for thing in "ab"]
        await fleet.settled()
        before = fleet.elapsed_seconds
        await fleet.drain("shop")
        assert fleet.elapsed_seconds - before < 1, "the batch would have waited two seconds for more"
        assert [await one.result() for one in handles] == [1, 1]
        shop.gate.clear()
        await fleet.add(shop.agent)
        late = await fleet.submit("shop.prices", "late")
        await eventually(lambda: len(shop.batches) == 2)
        draining = asyncio.create_task(fleet.drain("shop"))
        await eventually(lambda: shop.canceled)
        shop.gate.set()
        await draining
        await fleet.add(shop.agent)
        assert await late.result() == 4


async def test_middleware_goes_around_each_task_and_dependencies_around_the_call() -> None:
    agent = Agent("shop", slots=5)
    told: list[Any] = []

    @agent.provider
    async def pool() -> AsyncIterator[Pool]:
        told.append("open")
        yield Pool()
        told.append("close")

    @agent.middleware
    async def tell(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        ctx.input = ctx.input.upper()
        return await call_next(ctx)

    @agent.capability("shop.prices", batch=2)
    async def prices(things: list[str], pool: Pool) -> list[str]:
        told.append(things)
        return things

    async with TestFleet(agents=[agent]) as fleet:
        assert await values(fleet, ["a", "b"]) == ["A", "B"]

    assert told == ["open", ["A", "B"], "close"]


async def test_suspect_is_a_batch_of_its_own_in_a_process_of_its_own(scene: Scene, owner: ScriptedOwner) -> None:
    client = await scene.serve(batcher)
    item, _, pid = await client.request("batch.where", "direct")
    assert (item, pid) == ("direct", str(os.getpid()))

    owner.decide = granting(fence=3, attempt=2, suspect=True)
    await owner.publish("batch.where", "suspect", age_ms=2_000)
    await eventually(lambda: owner.results)

    item, _, pid = owner.values[0]
    assert item == "suspect"
    assert pid != str(os.getpid())


def test_types_of_one_task_are_published() -> None:
    agent = Agent("shop")

    @agent.capability("shop.prices", batch=7)
    async def prices(things: list[str], contexts: list[Context]) -> list[int | ValueError]: ...  # type: ignore[empty-body]

    spec = agent.capabilities[0].spec
    assert (spec.input_schema, spec.output_schema) == ({"type": "string"}, {"type": "integer"})
