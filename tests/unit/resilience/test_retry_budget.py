"""Retries inside of a handler: a tenth of the calls at most, never past the deadline, and in one layer only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent, Context, Retry, TaskFailed
from coditect.errors import BrokerUnavailable, TaskError
from coditect.model.retry import RetryAfter
from coditect.resilience.retries import NO_BUDGET, NO_TIME, Retries, RetryBudget, worth_a_retry
from coditect.testing import TestFleet
from tests.unit.agent.process_agent import Classless, Frozen, Traceless
from tests.unit.agent.scene import failure_of

ONCE = Retry(max_attempts=1)
AT_ONCE = Retry(max_attempts=3, first="1ms", cap="1ms")


@dataclass
class Dependency:
    """A dependency that fails so many times, and notes when it was called."""

    failures: int
    error: Callable[[], Exception] = lambda: OSError("it is down")
    calls: list[float] = field(default_factory=list)

    async def call(self) -> str:
        self.calls.append(asyncio.get_running_loop().time())
        return self.answer()

    def answer(self) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise self.error()
        return "fetched"

    def agent(self, policy: Retry | int | None = None) -> Agent:
        agent = Agent("fetcher")

        @agent.capability("page.fetch", retry=ONCE)
        async def fetch(_: None, ctx: Context) -> str:
            async for attempt in ctx.retry("web", policy):
                with attempt:
                    return await self.call()
            raise AssertionError("the last error is raised")

        @agent.capability("page.read", retry=ONCE)
        def read(_: None, ctx: Context) -> str:
            for attempt in ctx.retry("web", AT_ONCE):
                with attempt:
                    self.calls.append(0.0)
                    return self.answer()
            raise AssertionError("the last error is raised")

        return agent


@given(st.integers(1, 2_000), st.integers(1, 3))
def test_retries_are_a_tenth_of_the_calls_whatever_fails(calls: int, wanted: int) -> None:
    budget = RetryBudget()
    retries = 0

    for _ in range(calls):
        budget.called()
        retries += sum(budget.take() for _ in range(wanted))

    assert retries <= max(10, calls / 10)
    assert retries >= min(10, wanted * calls), "the first ten are free"


@pytest.mark.parametrize("capability", ["page.fetch", "page.read"])
async def test_call_that_fails_is_tried_again(capability: str) -> None:
    web = Dependency(failures=2)

    async with TestFleet(agents=[web.agent()]) as fleet:
        assert await fleet.request(capability) == "fetched"

    assert len(web.calls) == 3


async def test_dependency_that_fails_always_gets_ten_retries_in_its_first_hundred_calls() -> None:
    web = Dependency(failures=1_000)

    async with TestFleet(agents=[web.agent()]) as fleet:
        for _ in range(100):
            with pytest.raises(TaskFailed, match="it is down") as failed:
                await fleet.request("page.fetch")

    assert len(web.calls) == 110
    assert NO_BUDGET in failed.value.__notes__[0], "the traceback says why it was the last try"


async def test_error_that_takes_no_note_stays_the_error_of_the_last_try() -> None:
    web = Dependency(failures=1_000, error=lambda: Frozen(7))

    async with TestFleet(agents=[web.agent()]) as fleet:
        for _ in range(6):
            failure = await failure_of(await fleet.submit("page.fetch"))
            assert failure.type == "Frozen"

    assert len(web.calls) == 16


def test_error_whose_class_cannot_be_asked_is_retried_by_its_type() -> None:
    assert worth_a_retry(AT_ONCE, Classless())
    assert not worth_a_retry(Retry(on=(OSError,)), Traceless())


async def test_dependencies_have_a_budget_each() -> None:
    agent = Agent("fetcher")
    calls: list[str] = []

    @agent.capability("page.fetch", retry=ONCE)
    async def fetch(dependency: str, ctx: Context) -> None:
        async for attempt in ctx.retry(dependency, 2):
            with attempt:
                calls.append(dependency)
                raise OSError("it is down")

    async with TestFleet(agents=[agent]) as fleet:
        for dependency in ["web"] * 20 + ["mail"]:
            with pytest.raises(TaskFailed):
                await fleet.request("page.fetch", dependency)

    assert (calls.count("web"), calls.count("mail")) == (30, 2)


async def test_no_retry_begins_after_the_deadline() -> None:
    web = Dependency(failures=1_000)
    policy = Retry(max_attempts=1_000, first="1s", cap="1s")

    async with TestFleet(agents=[web.agent(policy)]) as fleet:
        handle = await fleet.submit("page.fetch", deadline="3s")
        with pytest.raises(TaskFailed, match="it is down") as failed:  # it ends by itself, and is not cut short
            await handle.result()
        ended = fleet.elapsed_seconds

    assert ended < 3
    assert NO_TIME in failed.value.__notes__[0]


async def test_pauses_are_drawn_at_random_below_a_bound_that_doubles() -> None:
    drawn = set()
    for _ in range(8):
        web = Dependency(failures=2)
        async with TestFleet(agents=[web.agent(Retry(max_attempts=3, first="100ms"))]) as fleet:
            await fleet.request("page.fetch")
        first, second, third = web.calls
        assert second - first <= 0.11
        assert third - second <= 0.21
        drawn.add(round(second - first, 4))

    assert len(drawn) > 4


@pytest.mark.parametrize(
    "error",
    [BrokerUnavailable("away"), RetryAfter("1s"), TaskFailed("a child failed")],
    ids=lambda one: type(one).__name__,
)
async def test_error_that_another_layer_retries_is_not_retried_here(error: Exception) -> None:
    def give() -> Exception:
        return error

    web = Dependency(failures=1_000, error=give)

    async with TestFleet(agents=[web.agent()]) as fleet:
        with pytest.raises(TaskError):
            await fleet.request("page.fetch")

    assert len(web.calls) == 1


async def test_cancellation_passes_through_at_once() -> None:
    tries = 0

    async def work() -> None:
        nonlocal tries
        async for attempt in Retries(RetryBudget(), AT_ONCE, lambda: None):
            with attempt:
                tries += 1
                await asyncio.sleep(3_600)

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert tries == 1


@pytest.mark.parametrize(("dependency", "policy"), [("", None), ("web", 0), ("web", "often")])
async def test_wrong_parameter_is_named(dependency: str, policy: int) -> None:
    agent = Agent("fetcher")

    @agent.capability("page.fetch", retry=ONCE)
    async def fetch(_: None, ctx: Context) -> None:
        ctx.retry(dependency, policy)

    async with TestFleet(agents=[agent]) as fleet:
        with pytest.raises(TaskFailed, match="parameter="):
            await fleet.request("page.fetch")
