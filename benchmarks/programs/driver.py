"""What the client asks of both sides, and the task that both are given."""

from __future__ import annotations

from typing import Any, Protocol

WINDOW = 500
"""Publishes that wait for their confirm at once, in the client and in the agent."""
PREFETCH = 500
"""Deliveries that an agent holds at once, and slots of ours."""
REPLY_PREFETCH = 1_000
RESULT_SECONDS = 60.0
TEXT = "The quick brown fox jumps over the lazy dog. " * 3


class Driver(Protocol):
    """One side of the comparison, connected."""

    async def burst(self, tasks: int) -> None:
        """Publishes so many tasks, pipelined, and waits until the result of each has come and is checked."""

    async def single(self, number: int) -> None:
        """One task and its result."""


def check(number: int, value: Any) -> None:
    """Whether it is the echo of this task.

    Raises: ValueError.
    """
    if value["number"] != number or value["text"] != TEXT:
        raise ValueError(f"the result of task {number} is another one's")
