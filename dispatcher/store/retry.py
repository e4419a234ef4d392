"""The retry loop of `Database.run`, which tries again after a conflict, a lost answer or too old a transaction."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from coditect.aio.supervisor import Backoff
from dispatcher.store.errors import RetriedByRun, TransactionTimedOut

Result = TypeVar("Result")

BACKOFF = Backoff(0.01, 1.0)
"""The pauses between retries of a transaction: FoundationDB's, from 10 ms to 1 s, with full jitter."""


@dataclass(slots=True)
class EarlierTries:
    """The counts of finished tries and of slow ones in one `Database.run` call, which its function may read."""

    count: int = 0
    slow: int = 0
    """The number of tries that took over half of `limits.TRANSACTION_SECONDS`."""

    def note(self, *, slow: bool) -> None:
        """Count one finished try; if `slow`, also count it as one that took over half of the permitted time."""
        self.count += 1
        self.slow += slow


async def repeated(
    attempt: Callable[[EarlierTries], Awaitable[Result]], *, seconds: float, chance: random.Random
) -> Result:
    """Repeat a transaction attempt while it raises RetriedByRun, with growing pauses, and return its result.

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
