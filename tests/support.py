"""What tests of every kind need."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

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


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that another process may be writing to; one that is not there yet has none.

    A write that crosses a page of the file may be seen by half: what no line feed ends is left for the next look.
    """
    whole, _, _ = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    return whole.decode().splitlines()
