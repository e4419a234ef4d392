"""The retry loop of `Database.run` for backends without a retry loop of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from coditect.aio.backoff import Backoff
from dispatcher.store.errors import RetriedByRun, TransactionTimedOut

Result = TypeVar("Result")

BACKOFF = Backoff(0.01, 1.0)
"""The pauses between tries of a transaction, as FoundationDB's, with full jitter."""


@dataclass(slots=True)
class EarlierTries:
    """The number of finished tries of a `Database.run` call, counted by the store."""

    count: int = 0
    slow: int = 0
    """The number of tries that took so long that their commit may have been too late."""

    def note(self, *, slow: bool) -> None:
        """Count a finished try; `slow` says that it took too long."""
        self.count += 1
        self.slow += slow


async def repeated(
    attempt: Callable[[EarlierTries], Awaitable[Result]], *, seconds: float, chance: random.Random
) -> Result:
    """Repeat an attempt while it raises RetriedByRun, with growing pauses, and return its result.

    The attempt's transactions count the tries.

    Raises:
        TransactionTimedOut: after `seconds`, with the last error as its cause.
        Exception: any other error of the attempt.
    """
    reason: Exception | None = None
    earlier = EarlierTries()
    pauses = BACKOFF.pauses()
    try:
        async with asyncio.timeout(seconds) as limit:
            while True:
                try:
                    return await attempt(earlier)
                except RetriedByRun as error:
                    reason = error
                await asyncio.sleep(chance.random() * next(pauses))
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TransactionTimedOut("The transaction did not come through in time", seconds=seconds) from reason or error
