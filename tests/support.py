"""What tests of every kind need."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

WIRES = ("plain", "direct")
"""The wire paths to RabbitMQ; what is promised of a broker holds on both."""


async def eventually(condition: Callable[[], object | Awaitable[object]], *, seconds: float = 5.0) -> None:
    """Returns when the condition (a function, or a coroutine function) is true; fails after the time."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not true within {seconds} s"
        await asyncio.sleep(0.01)
