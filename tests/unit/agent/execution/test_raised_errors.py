"""Whatever a handler raises, in whatever way it runs, is one failed attempt that shows the original."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from coditect import Agent, Context, Depends, Retry
from coditect.agent.signature import CallNext, MiddlewareContext
from coditect.model.result import MAX_MESSAGE_CHARS, MAX_TRACEBACK_CHARS, Failure, Status
from coditect.testing import TestFleet
from tests.unit.agent.process_agent import ERRORS, fail
from tests.unit.agent.scene import failure_of

ONCE = Retry(max_attempts=1)

raised_now: list[int] = []
"""The number of the error that a dependency raises: a provider does not see the input."""


def provided() -> int:
    return int(fail(raised_now[-1]))


async def closing() -> AsyncIterator[int]:
    yield 1
    fail(raised_now[-1])


async def on_loop(number: int) -> None:
    await asyncio.sleep(0.01)
    fail(number)


async def at_once(number: int) -> None:
    fail(number)


def in_thread(number: int) -> None:
    fail(number)


async def parts(number: int) -> AsyncIterator[int]:
    yield 1
    fail(number)


def plain_parts(number: int) -> Iterator[int]:
    yield 1
    fail(number)


async def batch(numbers: list[int]) -> list[int]:
    return [fail(number) for number in numbers]


async def returned(numbers: list[int]) -> list[Any]:
    return [ERRORS[number]() for number in numbers]


async def dependent(_: int, it: int = Depends(provided)) -> None: ...


def dependent_in_thread(_: int, it: int = Depends(provided)) -> None: ...


def closed(_: int, it: int = Depends(closing)) -> None: ...


async def opened() -> AsyncIterator[int]:
    yield 1


async def swallowing() -> AsyncIterator[int]:
    with contextlib.suppress(BaseException):
        yield 1


async def given_on_loop(number: int, it: int = Depends(opened), other: int = Depends(swallowing)) -> None:
    fail(number)


def given_in_thread(number: int, it: int = Depends(opened), other: int = Depends(swallowing)) -> None:
    fail(number)


async def given_parts(number: int, it: int = Depends(swallowing), other: int = Depends(opened)) -> AsyncIterator[int]:
    yield 1
    fail(number)


async def given_batch(numbers: list[int], it: int = Depends(opened), other: int = Depends(swallowing)) -> list[int]:
    return [fail(number) for number in numbers]


async def without_slot(number: int, ctx: Context) -> None:
    await ctx.without_slot(on_loop(number))


async def behind_middleware(number: int) -> None: ...


async def middleware(ctx: MiddlewareContext, call_next: CallNext) -> Any:
    return fail(ctx.input) if ctx.capability == "fail.now" else await call_next(ctx)


HANDLERS = [
    on_loop, at_once, in_thread, parts, plain_parts, batch, returned, dependent, dependent_in_thread, closed,
    given_on_loop, given_in_thread, given_parts, given_batch, without_slot, behind_middleware,
]  # fmt: skip
BATCHES = (batch, returned, given_batch)


def agent_of(handler: Callable[..., Any]) -> Agent:
    agent = Agent("failing", slots=2, reserve=0, middleware=[middleware] if handler is behind_middleware else [])
    batches: dict[str, Any] = {"batch": 2, "within": "10ms"} if handler in BATCHES else {}
    agent.capability("fail.now", retry=ONCE, **batches)(handler)

    @agent.capability("good.one")
    async def good(number: int) -> int:
        return number

    return agent


@pytest.mark.parametrize("handler", HANDLERS)
async def test_each_error_is_one_failed_attempt_and_the_slot_comes_back(handler: Callable[..., Any]) -> None:
    async with TestFleet(agents=[agent_of(handler)]) as fleet:
        for number, make in enumerate(ERRORS):
            name = type(make()).__name__
            raised_now.append(number)
            handles = [await fleet.submit("fail.now", number) for _ in range(2)]
            for handle in handles:
                failure = await failure_of(handle)
                assert (failure.reason, failure.type) == ("handler_error", name)
                assert handler is returned or "in fail\n" in failure.traceback, name
        assert await fleet.request("good.one", 5, timeout="1m") == 5
        assert len(fleet.agents) == 1


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("handler", [on_loop, in_thread])
async def test_each_error_that_the_policy_allows_is_tried_again(handler: Callable[..., Any], durable: bool) -> None:
    agent, twice = Agent("failing"), Retry(max_attempts=2, first="100ms")
    agent.capability("fail.now", retry=twice)(handler)
    async with TestFleet(agents=[agent]) as fleet:
        for number, make in enumerate(ERRORS):
            outcome = await (await fleet.client.submit("fail.now", number, durable=durable)).outcome(timeout="1h")
            assert outcome.failure is not None
            found = (outcome.failure.reason, outcome.failure.type, outcome.attempt)
            assert found == ("handler_error", type(make()).__name__, 2 if twice.allows(make()) else 1)


@pytest.mark.parametrize("then", ["returns", "raises", "waits"])
async def test_handler_that_cancels_its_own_asyncio_task_ends_its_attempt_alone(then: str) -> None:
    agent, runs = Agent("own"), []

    @agent.capability("cancel.me", retry=ONCE)
    async def cancel(_: Any) -> str:
        runs.append(then)
        current = asyncio.current_task()
        assert current is not None
        current.cancel("by itself")
        if then == "raises":
            raise ValueError("after that")
        if then == "waits":
            await asyncio.sleep(60)
        return "done"

    async with TestFleet(agents=[agent]) as fleet:
        outcome = await (await fleet.submit("cancel.me", None)).outcome(timeout="1m")
        assert runs == [then]
        if then == "returns":
            assert outcome.status is Status.COMPLETED
        else:
            assert outcome.failure is not None
            assert outcome.failure.type == ("ValueError" if then == "raises" else "CancelledError")


async def test_stop_iteration_of_a_retry_policy_is_tried_again() -> None:
    agent, attempts = Agent("reader"), iter([StopIteration("no line"), None])

    @agent.capability("read.line", retry=Retry(max_attempts=2, on=(StopIteration,), first="1s"))
    def read(_: Any) -> str:
        if (error := next(attempts)) is not None:
            raise error
        return "a line"

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("read.line", None, timeout="1m") == "a line"


@pytest.mark.parametrize("make", ERRORS)
def test_failure_of_any_exception_has_bounded_text_that_can_be_sent(make: Callable[[], BaseException]) -> None:
    try:
        raise make()
    except BaseException as error:  # noqa: BLE001 - each kind
        failure = Failure.from_error(error, "handler_error")

    assert failure.type == type(make()).__name__
    assert len(failure.message) <= MAX_MESSAGE_CHARS + 10
    assert len(failure.traceback) <= MAX_TRACEBACK_CHARS + 10
    assert "test_failure_of_any_exception" in failure.traceback
    for text in (failure.type, failure.message, failure.traceback, failure.fix):
        text.encode()
