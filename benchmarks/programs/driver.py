"""The client's interface to every side, and the task that is equal for all sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

WINDOW = 500
"""The number of publishes that wait for their confirm at once, in the client and in the agent."""
PREFETCH = 500
"""The number of deliveries that an agent holds at once, and of our agents' slots."""
REPLY_PREFETCH = 1_000
RESULT_SECONDS = 120.0
SENTENCE = "The quick brown fox jumps over the lazy dog. "
BODY_BYTES = 3 * len(SENTENCE)


@dataclass(frozen=True, slots=True)
class Load:
    """The body size of each task, and the number of capabilities over which the tasks are spread."""

    body_bytes: int = BODY_BYTES
    capabilities: int = 1

    @property
    def text(self) -> str:
        """The text of `body_bytes` bytes that each task carries."""
        return (SENTENCE * (self.body_bytes // len(SENTENCE) + 1))[: self.body_bytes]


class Driver(Protocol):
    """A connected side of the comparison; each side's module has an `open_driver(load)` that yields one."""

    async def burst(self, tasks: int) -> None:
        """Publish `tasks` tasks, pipelined, and wait until the result of each has come and is checked."""

    async def single(self, number: int) -> None:
        """Submit one task, and wait for its result."""

    async def forget(self, tasks: int) -> None:
        """Publish `tasks` tasks that want no result; return when the broker has them all."""


def check(number: int, text: str, value: Any) -> None:
    """Raise an error unless a result is the echo of its task.

    Raises:
        ValueError: when the result is another task's.
    """
    if value["number"] != number or value["text"] != text:
        raise ValueError(f"the result of task {number} is another one's")
