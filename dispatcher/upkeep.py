"""Upkeep of RQ: jobs that were lost come back, and the jobs of a workflow that ended go after a while.

Whether a shard's jobs are all there is seen by counting: RQ's jobs that have not ended must be as many as the nodes of
the shard's live workflows, state by state. While work flows the two differ from one look to the next; a difference that
stands still is a loss, and the live workflows are shown anew. One that this does not mend is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from coditect.errors import Retryable
from coditect.model.workflow.states import TaskState
from dispatcher.commands import Show
from dispatcher.graph.port import JobState, TaskGraph
from dispatcher.graph.states import job_state
from dispatcher.layers.keyspace import ENDED, RUNS, STATUSES
from dispatcher.layers.ledger.rows import RunRow
from dispatcher.ports import Ports
from dispatcher.queries import live
from dispatcher.settling import NOTHING
from dispatcher.store.transaction import Reads
from dispatcher.tenure import Tenure

log = logging.getLogger(__name__)

STANDS_STILL = 3
"""Looks in a row that find the same difference."""
MOST_WORKFLOWS = 100
"""Workflows that one look removes from RQ, for each shard."""
PAGE = 5_000

Difference = frozenset[tuple[JobState, int]]
NONE: Difference = frozenset()
OPEN = (JobState.DEFERRED, JobState.SCHEDULED, JobState.QUEUED, JobState.STARTED)


@dataclass(frozen=True, slots=True)
class Times:
    """When the upkeep does what."""

    look_seconds: float = 10.0
    """Between two looks."""
    keep_ms: int = 3_600_000
    """How long RQ shows a workflow that has ended."""


class Upkeep:
    """Looks after the shards of one dispatcher."""

    def __init__(self, ports: Ports, tenure: Tenure, graph: TaskGraph, times: Times) -> None:
        self._ports = ports
        self._tenure = tenure
        self._graph = graph
        self._times = times
        self._seen: dict[int, tuple[Difference, int]] = {}
        self._mended: dict[int, Difference] = {}
        self._removed: dict[int, bytes] = {}
        """By shard, the key behind which ended workflows are still to be removed."""

    async def run(self) -> None:
        """Looks until it is canceled."""
        while True:
            await asyncio.sleep(self._times.look_seconds)
            for shard in tuple(self._tenure.desks):
                try:
                    await self._compare(shard)
                    await self._tidy(shard)
                except Retryable as error:
                    log.info("RQ's jobs were not looked after; later", extra={"shard": shard, "reason": str(error)})

    async def _compare(self, shard: int) -> None:
        expected = await self._ports.database.read(lambda tr: _open(tr, shard))
        counts = await self._graph.counts([shard])
        found = frozenset((state, more) for state in OPEN if (more := counts.of(state) - expected[state]))
        before, times = self._seen.get(shard, (NONE, 0))
        times = times + 1 if found == before else 1
        self._seen[shard] = (found, times)
        if found and times >= STANDS_STILL and self._mended.get(shard) != found:
            log.warning("RQ's jobs are not those of the ledger; they are shown anew", extra={"shard": shard})
            self._mended[shard] = found
            for workflow in await self._ports.database.read(lambda tr: live(tr, shard)):
                self._tenure.put(shard, Show(workflow), NOTHING, size_bytes=0)

    async def _tidy(self, shard: int) -> None:
        """Removes the workflows that ended long enough ago. A new owner begins with the oldest; again does no harm."""
        begin = self._removed.get(shard, ENDED.range((shard,))[0])
        end = ENDED.pack((shard, self._ports.clock.now_ms() - self._times.keep_ms))
        rows = await self._ports.database.read(lambda tr: tr.get_range(begin, max(begin, end), limit=MOST_WORKFLOWS))
        for key, _ in rows:
            await self._remove(ENDED.unpack(key)[2])
            self._removed[shard] = key + b"\0"

    async def _remove(self, workflow: str) -> None:
        begin, end = STATUSES.range((workflow,))
        while True:
            page = begin
            rows = await self._ports.database.read(lambda tr, page=page: tr.get_range(page, end, limit=PAGE))  # type: ignore[misc]
            await self._graph.remove(workflow, [STATUSES.unpack(key)[1] for key, _ in rows])
            if len(rows) < PAGE:
                return
            begin = rows[-1][0] + b"\0"


def _open(tr: Reads, shard: int) -> Counter[JobState]:
    """The nodes of live workflows that have not ended, by the states of their jobs."""
    counts: Counter[JobState] = Counter()
    for workflow in live(tr, shard):
        row = tr.get(RUNS.pack((workflow,)))
        for state, number in RunRow.unpack(row).counts.items() if row else ():
            if not TaskState(state).terminal:
                counts[job_state(TaskState(state))] += number
    return counts
