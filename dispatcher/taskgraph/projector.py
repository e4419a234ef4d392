"""The projector, which copies one shard's committed node states into RQ, for RQ's tools to show.

The shard worker adds the changes of each commit and goes on; nothing waits for Redis. Waiting changes are not stored:
if the dispatcher dies, its successor finds them by comparison (`scheduling.reconciler`). While Redis is away
entries gather up to a bound; beyond it they are thrown away and the shard is to be reconciled instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice, takewhile

from coditect.model.capability import Priority
from coditect.model.result import Failure
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeSnapshot, Transition
from dispatcher.taskgraph.port import (
    BATCH,
    MOST_RESULT_BYTES,
    Change,
    Job,
    JobState,
    TaskGraph,
    TaskGraphUnavailable,
    job_state,
)

log = logging.getLogger(__name__)

MOST_WAITING = 200_000
"""The most job changes that wait for Redis, about 60 MB."""
MOST_WITH_OUTCOMES = 10_000
"""The number of waiting changes beyond which new ones are queued without results and errors."""
REDIS_RETRY_SECONDS = 0.2
"""The pause after Redis failed, before the projector tries again."""
JOB_GATHER_SECONDS = 0.1
"""The time for which job changes are gathered before they are written, unless one of them queues a job.

RQ is then only for people to look at. A node that lasts a moment is never shown as started: half of all changes are
saved, and in a chain a round trip to Redis for every hop.
"""

Entry = Job | Change


class Projector:
    """The writer of one shard's job changes to RQ, in the order of the shard's commits; `run` never ends by itself."""

    def __init__(self, graph: TaskGraph, shard: int, *, moved: Callable[[], None] = lambda: None) -> None:
        """Create an empty queue of job changes; `moved` is called after each written batch, which may queue a job."""
        self._graph = graph
        self._shard = shard
        self._moved = moved
        self._entries = deque[Entry]()
        self._added = 0
        """The number of all job changes that were ever added to the queue."""
        self._more = asyncio.Event()
        """The event that job changes are to be written to RQ now."""
        self._gathering: asyncio.TimerHandle | None = None
        self._fewer = asyncio.Event()
        """The event that queued job changes were written to RQ, or dropped."""
        self._closed = False
        self.overflowed = False
        """Whether job changes were dropped because too many waited: write all nodes to RQ, after `reconciled`."""
        self.available = True
        """Whether Redis answered the projector's last write."""

    @property
    def waiting(self) -> int:
        """The number of job changes that are not written to RQ yet."""
        return len(self._entries)

    def follow(self, effects: Effects) -> None:
        """Queue a commit's effects for RQ: jobs to create or correct, and of each changed node only the last change.
        RQ has a node that it proposed as started already. A shown node is created in RQ, or corrected where RQ differs.
        All nodes of a newly accepted workflow are shown, here or by a later batch, as they are then.
        """
        accepted = set(effects.accepted)
        last = {moved.node_key: moved for moved in effects.transitions if moved.node_key.workflow not in accepted}
        entries: list[Entry] = [self.job(snapshot) for snapshot in effects.snapshots]
        recorded = effects if self.waiting < MOST_WITH_OUTCOMES else Effects()
        entries += [
            self._change(entry, recorded.results.get(at), recorded.failures.get(at))
            for at, entry in last.items()
            if entry.state is not TaskState.PUBLISHED or at not in effects.adopted
        ]
        self.append(entries)

    def append(self, entries: Sequence[Entry]) -> None:
        """Queue new jobs and job changes, in order, to be written to RQ; when too many wait, drop all of them."""
        if self._closed or not entries:
            return
        if self.waiting + len(entries) > MOST_WAITING:
            log.warning("RQ is too far behind; the shard is reconciled instead", extra={"shard": self._shard})
            self.overflowed = True
            self._throw_away()
            return
        self._entries.extend(entries)
        self._added += len(entries)
        if self.waiting >= BATCH or any(entry.state is JobState.QUEUED for entry in entries):
            self._more.set()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(JOB_GATHER_SECONDS, self._gathered)

    def reconciled(self) -> None:
        """Clear the flag that job changes were dropped, because the caller is about to queue all nodes again."""
        self.overflowed = False

    async def flushed(self) -> None:
        """Wait until all job changes that are queued now are written to RQ, or dropped."""
        if not self._entries:
            return
        last = self._added
        self._more.set()
        while self._added - self.waiting < last:
            self._fewer.clear()
            await self._fewer.wait()

    async def tell_last(self, seconds: float) -> None:
        """Wait up to `seconds` until the queued job changes are in RQ, unless Redis did not answer the last write."""
        if self.available:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.flushed()

    def close(self) -> None:
        """Drop all queued and later job changes, because the dispatcher no longer owns the shard."""
        self._closed = True
        if self._gathering is not None:
            self._gathering.cancel()
        self._throw_away()

    async def run(self) -> None:
        """Write the queued job changes to RQ, batch by batch, until canceled; retry while Redis does not answer."""
        if self._entries:  # a loop before this one was woken for them, and died
            self._more.set()
        while True:
            await self._more.wait()
            self._more.clear()
            left = self.waiting
            try:
                while left > 0 and self._entries:
                    left -= await self._step()
            except TaskGraphUnavailable as error:
                if self.available:
                    log.warning("RQ cannot be told; it is tried again", extra={"shard": self._shard} | error.facts)
                self.available = False
                self._more.set()
                await asyncio.sleep(REDIS_RETRY_SECONDS)

    def job(self, shown: NodeSnapshot) -> Job:
        """Return the RQ job that shows a node in its present state."""
        node_key, level = shown.node_key, _level(shown.level)
        return Job(
            node_key.workflow,
            node_key.node,
            self._shard,
            level,
            shown.capability,
            shown.after,
            job_state(shown.state),
            shown.timeout_ms,
        )

    def _change(self, moved: Transition, result: bytes | None, failure: Failure | None) -> Change:
        node_key, row = moved.node_key, moved.row
        finished_ms = row.finished_ms
        why = row.reason if failure is None else _error(failure)
        return Change(
            node_key.workflow,
            node_key.node,
            self._shard,
            _level(moved.level),
            job_state(moved.state),
            result if result is not None and len(result) <= MOST_RESULT_BYTES else None,
            error=why if moved.state is not TaskState.COMPLETED else "",
            entry=f"{finished_ms}-{row.fence}" if finished_ms else "",
        )

    def _gathered(self) -> None:
        self._gathering = None
        self._more.set()

    def _throw_away(self) -> None:
        self._entries.clear()
        self._fewer.set()

    async def _step(self) -> int:
        """Write the first queued creations, or the first queued changes, to RQ in one batch; return their number.

        They stay queued until RQ has them.
        """
        kind = type(self._entries[0])
        batch = [*islice(takewhile(lambda entry: type(entry) is kind, self._entries), BATCH)]
        if jobs := [entry for entry in batch if isinstance(entry, Job)]:
            await self._create(jobs)
        else:
            changes = [entry for entry in batch if isinstance(entry, Change)]
            await self._graph.tell(_without_passing_starts(changes))
        self.available = True
        self._moved()
        for entry in batch:
            if self._entries and self._entries[0] is entry:  # an overflow meanwhile took away what was told
                self._entries.popleft()
        self._fewer.set()
        return len(batch)

    async def _create(self, jobs: list[Job]) -> None:
        """Create jobs in RQ, and correct those that RQ has already in another state."""
        if there := await self._graph.create(jobs):
            await self._graph.tell([job.as_change() for job in await self._graph.difference(there)])


def _without_passing_starts(changes: list[Change]) -> list[Change]:
    """Return the job changes; leave out a change to the state started if a later change is of the same job."""
    last = {(change.workflow, change.node): change for change in changes}
    return [
        change
        for change in changes
        if change.state is not JobState.STARTED or last[(change.workflow, change.node)] is change
    ]


def _error(failure: Failure) -> str:
    return ": ".join(part for part in (failure.reason, failure.type, failure.message) if part)[:MOST_RESULT_BYTES]


def _level(text: str) -> Priority:
    return Priority(text) if text else Priority.P1
