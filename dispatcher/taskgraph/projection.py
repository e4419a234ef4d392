"""The queue of changes from the ledger to RQ for one shard, in the order of its commits.

The shard worker appends after each commit and goes on; nothing waits for Redis. The queue is not stored: changes that
died with a dispatcher are found by its successor's comparison (`scheduling.reconciler`). While Redis is away entries
gather up to a bound; beyond it they are thrown away and the shard is to be reconciled instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TypeGuard

from dispatcher.taskgraph.port import BATCH, Change, Job, JobState, TaskGraph, TaskGraphUnavailable

log = logging.getLogger(__name__)

MOST_WAITING = 200_000
"""The most entries that wait for Redis, about 60 MB."""
PAUSE_SECONDS = 0.2
"""The pause after a failure, before the next try."""
GATHER_SECONDS = 0.1
"""The time for which entries wait for others, unless one of them queues a job, from which it is to be adopted.

RQ is then only for people to look at. A node that lasts a moment is never shown as started: half of all changes are
saved, and in a chain a round trip to Redis for every hop.
"""

Entry = Job | Change


class Projection:
    """The changes of one shard that are not in RQ yet, written by `run`; for one event loop."""

    def __init__(
        self,
        graph: TaskGraph,
        shard: int,
        *,
        moved: Callable[[], None] = lambda: None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """Call `moved` when jobs may have been queued (`Bridge.wake`)."""
        self._graph = graph
        self._shard = shard
        self._entries: deque[tuple[int, Entry]] = deque()
        self._moved = moved
        self._most_waiting = most_waiting
        self._more = asyncio.Event()
        """The event that there is something to write now."""
        self._gathering: asyncio.TimerHandle | None = None
        self._went_on = asyncio.Event()
        """The event that `told` has grown."""
        self._closed = False
        self.told = 0
        """The number up to which everything was written, or thrown away; 0 at first."""
        self.overflowed = False
        """Whether entries were thrown away: reconcile the shard, then call `reconciled`."""
        self.available = True
        """Whether Redis answered the last time."""

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, number: int, entries: Sequence[Entry]) -> None:
        """Add the changes of one commit; numbers grow, and creations stand before changes of the same jobs."""
        if self._closed:
            return
        if len(self._entries) + len(entries) > self._most_waiting:
            log.warning("RQ is too far behind; the shard is reconciled instead", extra={"shard": self._shard})
            self._entries.clear()
            self.overflowed = True
        else:
            self._entries.extend((number, entry) for entry in entries)
            if len(self._entries) >= BATCH or any(entry.state is JobState.QUEUED for entry in entries):
                self._more.set()
            elif self._gathering is None:
                self._gathering = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._gathered)
        if not self._entries:
            self._go_on_to(number)

    def _go_on_to(self, number: int) -> None:
        self.told = number
        self._went_on.set()

    def _gathered(self) -> None:
        self._gathering = None
        if self._entries:
            self._more.set()

    def reconciled(self) -> None:
        """Note that the shard was compared with the ledger after the overflow."""
        self.overflowed = False

    async def run(self) -> None:
        """Write the entries, batch by batch, until canceled."""
        if self._entries:  # a loop before this one was woken for them, and died
            self._more.set()
        while True:
            await self._more.wait()
            self._more.clear()
            left = len(self._entries)
            try:
                while left > 0 and self._entries:
                    left -= await self._step()
            except TaskGraphUnavailable as error:
                if self.available:
                    log.warning("RQ cannot be told; it is tried again", extra={"shard": self._shard} | error.facts)
                self.available = False
                self._more.set()
                await asyncio.sleep(PAUSE_SECONDS)

    async def drained(self) -> None:
        """Wait until all earlier entries are written, or thrown away; no entry waits for others meanwhile."""
        if not self._entries:
            return
        last, _ = self._entries[-1]
        self._more.set()
        while self.told < last:
            self._went_on.clear()
            await self._went_on.wait()

    def close(self) -> None:
        """Throw away waiting and later entries, and release all waiting callers."""
        self._closed = True
        if self._gathering is not None:
            self._gathering.cancel()
        if self._entries:
            last, _ = self._entries[-1]
            self._entries.clear()
            self._go_on_to(last)

    async def _step(self) -> int:
        """Write the first entries, all creations or all changes, and return their number.

        They stay until that is done.
        """
        batch = self._first()
        if _are_jobs(batch):
            await self._create(batch)
        elif _are_changes(batch):
            await self._graph.tell(_without_passing_starts(batch))
        self.available = True
        self._moved()
        told = self.told
        # an overflow meanwhile took away what was told
        for entry in batch:
            if self._entries and self._entries[0][1] is entry:
                number, _ = self._entries.popleft()
                told = number if not self._entries or self._entries[0][0] != number else number - 1
        self._go_on_to(told)
        return len(batch)

    async def _create(self, jobs: list[Job]) -> None:
        """Create the jobs, and correct existing ones that differ."""
        if there := await self._graph.create(jobs):
            difference = await self._graph.difference(there)
            await self._graph.tell(difference.changes)

    def _first(self) -> list[Entry]:
        if not self._entries:
            return []
        kind = type(self._entries[0][1])
        alike = takewhile(lambda entry: type(entry[1]) is kind, self._entries)
        return [entry for (_, entry), _ in zip(alike, range(BATCH), strict=False)]


def _without_passing_starts(changes: list[Change]) -> list[Change]:
    """Return the changes without the starts of jobs that changed again."""
    last = {(change.workflow, change.node): change for change in changes}
    return [
        change
        for change in changes
        if change.state is not JobState.STARTED or last[(change.workflow, change.node)] is change
    ]


def _are_jobs(entries: list[Entry]) -> TypeGuard[list[Job]]:
    return bool(entries) and isinstance(entries[0], Job)


def _are_changes(entries: list[Entry]) -> TypeGuard[list[Change]]:
    return bool(entries) and isinstance(entries[0], Change)
