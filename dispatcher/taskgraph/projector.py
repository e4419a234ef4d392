"""The projector, which copies the committed node states of a dispatcher's shards into RQ, for RQ's tools to show.

The shard workers add the changes of each commit and go on; nothing waits for Redis. Waiting changes are not stored:
if the dispatcher dies, its successor finds them by comparison (`scheduling.reconciler`). While Redis is away
entries gather up to a bound; beyond it they are thrown away and their shards are to be reconciled instead.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

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
    """The writer of job changes to RQ, in the order of each shard's commits; `run` never ends by itself."""

    def __init__(self, graph: TaskGraph, *, moved: Callable[[], None] = lambda: None) -> None:
        """Create an empty queue of job changes; `moved` is called after each written batch, which may queue a job."""
        self._graph = graph
        self._moved = moved
        self._entries = deque[tuple[int, Entry]]()
        """The job changes that are not written to RQ yet, each with its number."""
        self._added = 0
        """The number of all job changes that were ever added to the queue."""
        self._more = asyncio.Event()
        """The event that job changes are to be written to RQ now."""
        self._gathering: asyncio.TimerHandle | None = None
        self._fewer = asyncio.Event()
        """The event that queued job changes were written to RQ, or dropped."""
        self.overflowed = set[int]()
        """The shards of which job changes were dropped because too many waited: write all of their nodes to RQ."""
        self.available = True
        """Whether Redis answered the projector's last write."""

    @property
    def waiting(self) -> int:
        """The number of job changes that are not written to RQ yet."""
        return len(self._entries)

    def follow(self, shard: int, effects: Effects) -> None:
        """Queue the effects of a shard's commit for RQ: jobs to create or correct, and each changed node's last change.

        RQ has a node that it proposed as started already. A shown node is created in RQ, or corrected where RQ differs.
        All nodes of a newly accepted workflow are shown, here or by a later batch, as they are then.
        """
        accepted = set(effects.accepted)
        last = {moved.node_key: moved for moved in effects.transitions if moved.node_key.workflow not in accepted}
        entries: list[Entry] = [job_of(shard, snapshot) for snapshot in effects.snapshots]
        recorded = effects if self.waiting < MOST_WITH_OUTCOMES else Effects()
        entries += [
            _change(shard, entry, recorded.results.get(at), recorded.failures.get(at))
            for at, entry in last.items()
            if entry.state is not TaskState.PUBLISHED or at not in effects.adopted
        ]
        self.append(entries)

    def append(self, entries: Sequence[Entry]) -> None:
        """Queue new jobs and job changes, in order, to be written to RQ; when too many wait, drop all of them."""
        if not entries:
            return
        if self.waiting + len(entries) > MOST_WAITING:
            self.overflowed.update(entry.shard for entry in (*entries, *(entry for _, entry in self._entries)))
            log.warning("RQ is too far behind; shards are reconciled instead", extra={"shards": [*self.overflowed]})
            self._entries.clear()
            self._fewer.set()
            return
        self._entries.extend(enumerate(entries, self._added + 1))
        self._added += len(entries)
        if self.waiting >= BATCH or any(entry.state is JobState.QUEUED for entry in entries):
            self._more.set()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(JOB_GATHER_SECONDS, self._gathered)

    async def flushed(self) -> None:
        """Wait until all job changes that are queued now are written to RQ, or dropped."""
        last = self._added
        while self._entries and self._entries[0][0] <= last:
            self._more.set()
            self._fewer.clear()
            await self._fewer.wait()

    async def tell_last(self, seconds: float) -> None:
        """Wait up to `seconds` until the queued job changes are in RQ, unless Redis did not answer the last write."""
        if self.available:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.flushed()

    def drop(self, shard: int) -> None:
        """Drop all queued job changes of a shard, because the dispatcher no longer owns it."""
        self._entries = deque((number, entry) for number, entry in self._entries if entry.shard != shard)
        self.overflowed.discard(shard)
        self._fewer.set()

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
                    log.warning("RQ cannot be told; it is tried again", extra=error.facts)
                self.available = False
                self._more.set()
                await asyncio.sleep(REDIS_RETRY_SECONDS)

    def _gathered(self) -> None:
        self._gathering = None
        self._more.set()

    async def _step(self) -> int:
        """Write the first queued changes to RQ, creations before the others; return their number.

        They stay queued until RQ has them. A job that is shown again behind a change of its workflow waits for the next
        step.
        """
        jobs, changes, changed = list[Job](), list[Change](), set[str]()
        batch: list[tuple[int, Entry]] = []
        for number, entry in islice(self._entries, BATCH):
            if isinstance(entry, Change):
                changed.add(entry.workflow)
                changes.append(entry)
            elif entry.workflow in changed:
                break
            else:
                jobs.append(entry)
            batch.append((number, entry))
        if jobs:
            await self._create(jobs)
            self._moved()
        if changes:
            await self._graph.tell(_without_passing_starts(changes))
            self._moved()
        self.available = True
        last, _ = batch[-1]
        while self._entries and self._entries[0][0] <= last:  # unless they were dropped meanwhile
            self._entries.popleft()
        self._fewer.set()
        return len(batch)

    async def _create(self, jobs: list[Job]) -> None:
        """Create jobs in RQ, and correct those that RQ has already in another state."""
        if there := await self._graph.create(jobs):
            await self._graph.tell([job.as_change() for job in await self._graph.difference(there)])


def job_of(shard: int, shown: NodeSnapshot) -> Job:
    """Return the RQ job that shows a node of a shard in its present state."""
    node_key, level = shown.node_key, _level(shown.level)
    return Job(
        node_key.workflow,
        node_key.node,
        shard,
        level,
        shown.capability,
        shown.after,
        job_state(shown.state),
        shown.timeout_ms,
    )


def _change(shard: int, moved: Transition, result: bytes | None, failure: Failure | None) -> Change:
    node_key, row = moved.node_key, moved.row
    finished_ms = row.finished_ms
    why = row.reason if failure is None else _error(failure)
    return Change(
        node_key.workflow,
        node_key.node,
        shard,
        _level(moved.level),
        job_state(moved.state),
        result if result is not None and len(result) <= MOST_RESULT_BYTES else None,
        error=why if moved.state is not TaskState.COMPLETED else "",
        entry=f"{finished_ms}-{row.fence}" if finished_ms else "",
    )


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
