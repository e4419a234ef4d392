"""The breaker of one process: the test plays the dependency and time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect import Breaker
from coditect.errors import BreakerOpen, InputError
from coditect.model.limits import BreakerState
from coditect.resilience.breakers import CircuitBreaker
from coditect.testing import TestFleet


class Time:
    """The clock of a test, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def breaker(time: Time, **fields: Any) -> CircuitBreaker:
    declared: dict[str, Any] = {"failures": 3, "reset": "10s", "on": OSError, "window": "30s"}
    return CircuitBreaker(Breaker("github", **declared | fields), now=time)


async def fail(one: CircuitBreaker, error: BaseException | None = None) -> None:
    with pytest.raises(type(error or OSError())):
        async with one.call():
            raise error or OSError


async def succeed(one: CircuitBreaker) -> None:
    async with one.call():
        pass


async def opened(time: Time, **fields: Any) -> CircuitBreaker:
    one = breaker(time, **fields)
    for _ in range(3):
        await fail(one)
    assert not one.is_closed
    return one


async def test_failures_in_a_row_open_the_breaker_and_a_success_between_them_does_not_count(time: Time) -> None:
    one = breaker(time)
    for _ in range(2):
        await fail(one)
    await succeed(one)
    await fail(one)
    assert one.is_closed

    for _ in range(2):
        await fail(one)

    with pytest.raises(BreakerOpen) as refused:
        await succeed(one)
    assert refused.value.facts["retry_after_seconds"] == 10
    assert refused.value.facts["reason"] == "3 failures in a row"


async def test_the_rate_of_failures_within_the_window_opens_the_breaker(time: Time) -> None:
    one = breaker(time, failures=100, rate=0.5, calls=10)
    for _ in range(5):
        await succeed(one)
    for _ in range(4):
        await fail(one)
    assert one.is_closed

    await fail(one)

    assert one.reason == "5 of the last 10 calls failed"


async def test_calls_before_the_window_do_not_count_in_the_rate(time: Time) -> None:
    one = breaker(time, failures=100, rate=0.5, calls=10)
    for _ in range(9):
        await fail(one)
    time.now += 34

    await fail(one)

    assert one.is_closed


async def test_slow_calls_count_as_failures_although_they_succeed(time: Time) -> None:
    one = breaker(time, slow="2s")
    for _ in range(3):
        async with one.call():
            time.now += 2.5

    assert not one.is_closed


async def test_calls_that_are_canceled_count_as_failures_once_they_are_slow(time: Time) -> None:
    one = breaker(time, slow="2s")

    for took in (1.5, 2.5, 2.5, 2.5):
        assert one.is_closed
        with pytest.raises(asyncio.CancelledError):
            async with one.call():
                time.now += took
                raise asyncio.CancelledError

    assert not one.is_closed


@pytest.mark.parametrize("error", [ValueError(), FileNotFoundError()])
async def test_exceptions_that_are_not_meant_or_ignored_count_as_successes(time: Time, error: Exception) -> None:
    one = breaker(time, ignore=FileNotFoundError)
    for _ in range(2):
        await fail(one)

    await fail(one, error)
    for _ in range(2):
        await fail(one)

    assert one.is_closed


async def test_a_cancellation_is_neutral_and_passes_through(time: Time) -> None:
    one = breaker(time)
    for _ in range(2):
        await fail(one)

    await fail(one, asyncio.CancelledError())
    assert one.is_closed

    await fail(one)
    assert not one.is_closed


async def test_one_probe_is_made_at_a_time_and_its_success_closes_the_breaker(time: Time) -> None:
    one, probes, go_on = await opened(time), [], asyncio.Event()
    time.now += 10

    async def call() -> None:
        async with one.call():
            probes.append(1)
            await go_on.wait()

    calls = [asyncio.create_task(call()) for _ in range(5)]
    await asyncio.sleep(0)
    go_on.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)

    assert len(probes) == 1
    assert [type(end) for end in ended].count(BreakerOpen) == 4
    await succeed(one)


@pytest.mark.parametrize("error", [OSError(), asyncio.CancelledError()], ids=["failed", "canceled"])
async def test_a_probe_without_success_leaves_the_breaker_open_and_the_next_interval_has_another(
    time: Time, error: BaseException
) -> None:
    one = await opened(time)
    time.now += 10

    await fail(one, error)
    assert one.wait_seconds == 10
    with pytest.raises(BreakerOpen):
        await succeed(one)
    time.now += 10
    await succeed(one)

    assert one.is_closed


async def test_calls_run_side_by_side_since_no_lock_is_held_during_a_call(time: Time) -> None:
    one, inside = breaker(time), asyncio.Barrier(4)

    async def call() -> None:
        async with one.call():
            await inside.wait()

    await asyncio.wait_for(asyncio.gather(*(call() for _ in range(4))), 5)


async def test_a_call_that_began_before_the_trip_decides_nothing_about_the_probe(time: Time) -> None:
    one, late = breaker(time), asyncio.Event()

    async def slow_success() -> None:
        async with one.call():
            await late.wait()

    call = asyncio.create_task(slow_success())
    await asyncio.sleep(0)
    for _ in range(3):
        await fail(one)
    late.set()
    await call

    assert not one.is_closed


async def test_older_news_of_the_fleet_is_ignored(time: Time) -> None:
    one = breaker(time)
    one.adopt(BreakerState("github", open=True, version=2, retry_ms=5000, reason="elsewhere"))
    one.adopt(BreakerState("github", open=False, version=1))
    assert not one.is_closed
    assert one.wait_seconds == 5

    one.adopt(BreakerState("github", open=False, version=3))

    assert one.is_closed


@pytest.mark.parametrize(
    "wrong", [{"failures": 0}, {"rate": 0}, {"rate": 1.5}, {"reset": "25h"}, {"on": 3}, {"scope": "world"}, {"slow": 0}]
)
def test_a_field_out_of_its_bounds_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        Breaker("github", **wrong)
    assert refused.value.facts["parameter"] in wrong


async def test_wait_that_no_clock_tells_from_none_takes_time_so_that_a_loop_over_it_ends(time: Time) -> None:
    async with TestFleet():
        loop = asyncio.get_running_loop()
        begun = loop.time()

        await breaker(time).next_change(1e-14)

        assert loop.time() > begun
