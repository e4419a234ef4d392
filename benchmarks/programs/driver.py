"""What the client asks of every side, and the task that all are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

WINDOW = 500
"""Publishes that wait for their confirm at once, in the client and in the agent."""
PREFETCH = 500
"""Deliveries that an agent holds at once, and slots of ours."""
REPLY_PREFETCH = 1_000
RESULT_SECONDS = 120.0
SENTENCE = "The quick brown fox jumps over the lazy dog. "
BODY_BYTES = 3 * len(SENTENCE)


@dataclass(frozen=True, slots=True)
class Load:
    """What each task carries, and over how many capabilities the tasks are spread."""

    body_bytes: int = BODY_BYTES
    capabilities: int = 1

    @property
    def text(self) -> str:
        """So many bytes of text."""
        return (SENTENCE * (self.body_bytes // len(SENTENCE) + 1))[: self.body_bytes]


class Driver(Protocol):
    """One side of the comparison, connected. Each side's module has an `open_driver(load)` that gives one."""

    async def burst(self, tasks: int) -> None:
        """Publishes so many tasks, pipelined, and waits until the result of each has come and is checked."""

    async def single(self, number: int) -> None:
        """One task and its result."""

    async def forget(self, tasks: int) -> None:
        """Publishes so many tasks that want no result; returns when the broker has them all."""


def check(number: int, text: str, value: Any) -> None:
    """Whether it is the echo of this task.

    Raises: ValueError.
    """
    if value["number"] != number or value["text"] != text:
        raise ValueError(f"the result of task {number} is another one's")
