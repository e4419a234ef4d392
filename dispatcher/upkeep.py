"""Upkeep of RQ: jobs that were lost come back.

A change of a job that RQ does not have says so: its workflow is shown anew. Where nothing changes, a loss is seen by
counting: RQ's jobs that have not ended must be as many as the nodes of the shard's live workflows, state by state.
While work flows the two differ from one look to the next; a difference that stands still is a loss, and the live
workflows are shown anew. One that this does not mend is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from coditect.errors import Retryable
from coditect.model.workflow.states import TaskState
from dispatcher.commands import Show
from dispatcher.graph.port import JobState, TaskGraph
from dispatcher.graph.states import job_state
from dispatcher.layers.keyspace import RUNS
from dispatcher.layers.ledger.rows import RunRow
from dispatcher.layers.shards import shard_of
from dispatcher.ports import Ports
from dispatcher.queries import live
from dispatcher.settling import NOTHING
from dispatcher.store.transaction import Reads
from dispatcher.tenure import Tenure

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks."""
STANDS_STILL = 3
"""Looks in a row that find the same difference."""

Difference = frozenset[tuple[JobState, int]]
NONE: Difference = frozenset()
OPEN = (JobState.DEFERRED, JobState.SCHEDULED, JobState.QUEUED, JobState.STARTED)


class Upkeep:
    """Looks after the shards of one dispatcher."""

    def __init__(self, ports: Ports, tenure: Tenure, graph: TaskGraph, *, look_seconds: float) -> None:
        self._ports = ports
        self._tenure = tenure
        self._graph = graph
        self._look_seconds = look_seconds
        self._seen: dict[int, tuple[Difference, int]] = {}
        self._mended: dict[int, Difference] = {}

    async def run(self) -> None:
        """Looks until it is canceled."""
        while True:
            await asyncio.sleep(self._look_seconds)
            self._show(self._tenure.lost)
            self._tenure.lost.clear()
            for shard in tuple(self._tenure.desks):
                try:
                    await self._compare(shard)
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
            self._show(await self._ports.database.read(lambda tr: live(tr, shard)))

    def _show(self, workflows: Iterable[str]) -> None:
        for workflow in workflows:
            self._tenure.put(shard_of(workflow, self._tenure.count), Show(workflow), NOTHING, size_bytes=0)


def _open(tr: Reads, shard: int) -> Counter[JobState]:
    """The nodes of live workflows that have not ended, by the states of their jobs."""
    counts: Counter[JobState] = Counter()
    for workflow in live(tr, shard):
        row = tr.get(RUNS.pack((workflow,)))
        for state, number in RunRow.unpack(row).counts.items() if row else ():
            if not TaskState(state).terminal:
                counts[job_state(TaskState(state))] += number
    return counts
