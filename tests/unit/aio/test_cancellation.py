"""A cancellation that a library swallows still ends whoever made the call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coditect.aio.supervisor import heeded
from coditect.errors import RegistryUnavailable
from coditect.registry.redis import RedisConnection

Call = Callable[[asyncio.Event], Awaitable[Any]]


async def answered(begun: asyncio.Event) -> str:
    """As Python 3.11's `wait_for` when both come together."""
    begun.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "answer"
    raise AssertionError


async def refused(begun: asyncio.Event) -> str:
    await answered(begun)
    raise ConnectionError("lost")


async def canceled(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


async def forever(call: Call, begun: asyncio.Event) -> None:
    """An endless loop over calls of a library, each in the adapter's way."""
    connection = RedisConnection(
        "redis://localhost:1",
        timeout_seconds=60,
        unavailable=lambda step, reason: RegistryUnavailable("no", step=step, reason=reason),
    )
    while True:
        try:
            await connection.bounded("step", call(begun))
        except RegistryUnavailable:
            await asyncio.sleep(0)


@pytest.mark.parametrize("call", [answered, refused, canceled])
async def test_endless_loop_ends_when_it_is_canceled_whatever_its_call_does(call: Call) -> None:
    begun = asyncio.Event()
    loop = asyncio.create_task(forever(call, begun))
    await begun.wait()

    loop.cancel()

    await asyncio.wait([loop], timeout=5)
    assert loop.cancelled()


async def test_time_limit_of_the_caller_is_heeded_too() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            with heeded():
                await answered(asyncio.Event())


async def test_cancellation_from_before_is_no_business_of_the_block() -> None:
    async def tidy() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with heeded():
                return "tidied"
        raise AssertionError

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    task.cancel()

    assert await task == "tidied"
