"""The publications of one shard that the broker has confirmed, and whose outbox rows are yet to be cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


class ConfirmedPublications:
    """The numbers of confirmed publications, which the shard's next batch takes along and clears from the outbox.

    A batch only for them would hold up the next result by a whole commit, so there is one only when no other batch came
    for a while: then `are_overdue` holds, and `on_overdue` is called.
    """

    def __init__(self, on_overdue: Callable[[], None]) -> None:
        self._numbers: list[int] = []
        self._on_overdue = on_overdue
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.are_overdue = False
        """Whether numbers have waited for a batch for so long that they get one of their own."""

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, numbers: Iterable[int], *, within_seconds: float) -> None:
        """Add numbers of confirmed publications; if no batch takes them in time, `on_overdue` is called."""
        self._numbers.extend(numbers)
        if self._numbers and self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(within_seconds, self._ring)

    def take(self) -> list[int]:
        """Remove and return the confirmed publications' numbers for a batch; `add` them again if the batch fails."""
        self._stop()
        numbers, self._numbers, self.are_overdue = self._numbers, [], False
        return numbers

    def close(self) -> None:
        """Stop the timer after which waiting numbers get a batch of their own; `add` and `take` still work."""
        self._closed = True
        self._stop()

    def _ring(self) -> None:
        self._timer = None
        self.are_overdue = True
        self._on_overdue()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
