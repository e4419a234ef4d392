"""The reconciler, which slowly and steadily compares RQ's jobs with the ledger's nodes, and corrects RQ.

RQ gets each change after its commit, so it lags by a moment, and people change it with its own tools. Only a
difference that stands in two looks is drift: a call that was lost, a key that a person deleted. It is corrected in the
order of the shard's commits, like every change.

Ended workflows are not compared again and again. Of a workflow that ended while RQ could not be reached, because the
dispatcher died or Redis lost the last of its log, RQ has jobs that have not ended: by those it is found, however late.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError
from dispatcher.ledger.commands import Look, Show
from dispatcher.ledger.effects import NodeKey, NodeSnapshot
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.workflows.status import live, over
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads
from dispatcher.taskgraph.port import BATCH, Job, Key, TaskGraph, TaskGraphUnavailable
from dispatcher.taskgraph.projector import Projector

log = logging.getLogger(__name__)

ROUND_SECONDS = 15.0
RECOMPARE_SECONDS = 1.0
"""The pause between the two comparisons of a job with the ledger, after which a difference counts as drift."""
SHARE = 0.02
"""The largest share of time that comparing RQ with the ledger takes, by a pause after each page."""
LONGEST_COMPARE_PAUSE_SECONDS = 30.0
MAX_NODES_READ_TOGETHER = 64
"""The most nodes of one workflow that a read of several workflows returns."""
TOGETHER = 32
"""The number of workflows whose first nodes one read returns."""


class Reconciler:
    """The reconciler of RQ's jobs with the ledger, for all shards of one dispatcher."""

    def __init__(
        self,
        database: Database,
        workers: Mapping[int, ShardWorker],
        graph: TaskGraph,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        self._round_seconds = round_seconds
        self._database = database
        self._workers = workers
        self._graph = graph
        self.mended = 0
        """The number of jobs corrected so far, because RQ lacked them or had them in another state."""

    def open(self, supervisor: Supervisor) -> None:
        """Start the loop that compares live workflows with RQ, and the loop that compares ended ones.

        Neither loop is critical: RQ's tools show the differences until one runs again.
        """
        supervisor.keep(partial(self._repeat, self.round), name="compare RQ with the ledger", critical=False)
        supervisor.keep(partial(self._repeat, self.ended), name="compare what ended with RQ", critical=False)

    async def _repeat(self, step: Callable[[], Awaitable[int]]) -> None:
        while True:
            await asyncio.sleep(self._round_seconds)
            try:
                await step()
            except TaskGraphUnavailable as error:
                log.debug("RQ cannot be compared", extra=error.facts)
            except CoditectError as error:
                log.info("RQ could not be compared", extra={"reason": str(error)})

    async def round(self) -> int:
        """Correct RQ's jobs of live workflows, or send all again after lost updates; return how many were corrected.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
            CoditectError: any error of the store.
        """
        before = self.mended
        for worker, projector in self._shown():
            workflows = await self._database.read(partial(live, shard=worker.shard))
            if projector.overflowed:
                projector.reconciled()
                for workflow in workflows:
                    worker.put(Show(workflow))
            else:
                await self._mend(worker, projector, workflows)
        return self.mended - before

    async def ended(self) -> int:
        """Compare the ended workflows that have unended jobs in RQ, and return how many jobs were corrected.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
            CoditectError: any error of the store.
        """
        before = self.mended
        for worker, projector in self._shown():
            await projector.flushed()  # what has just ended is not to be looked at
            began = _now()
            found = (await self._graph.unfinished(worker.shard)).workflows
            await _pause_after(began, SHARE)
            if found:
                ended = await self._database.read(partial(over, shard=worker.shard, workflows=found))
                await self._mend(worker, projector, ended)
        return self.mended - before

    def _shown(self) -> list[tuple[ShardWorker, Projector]]:
        return [(worker, worker.projector) for worker in self._workers.values() if worker.projector is not None]

    async def _mend(self, worker: ShardWorker, projector: Projector, workflows: Sequence[str]) -> None:
        """Compare the nodes of workflows with RQ, page by page, and correct the jobs that differ in two comparisons."""
        async for wrong in drift(self._database, worker, projector, self._graph, workflows, share=SHARE):
            self.mended += len(wrong)
            log.warning("RQ differs from the ledger and is mended", extra={"shard": worker.shard, "jobs": len(wrong)})
            by_workflow: dict[str, tuple[str, ...]] = {}
            for job in wrong:
                by_workflow[job.workflow] = (*by_workflow.get(job.workflow, ()), job.node)
            for workflow, nodes in by_workflow.items():
                left = nodes
                while left:  # by as many commands to the shard as needed
                    left = await worker.ask(Show(workflow, left))


async def drift(
    database: Database,
    worker: ShardWorker,
    projector: Projector,
    graph: TaskGraph,
    workflows: Sequence[str],
    *,
    share: float = 1.0,
) -> AsyncIterator[list[Job]]:
    """Yield, page by page, the jobs that RQ lacks or has in a wrong state in two comparisons; correct nothing.

    While a page waits for its second comparison the next ones get their first, which take a `share` of the time.

    Raises:
        TaskGraphUnavailable: when Redis does not answer; retryable.
        CoditectError: any error of the store.
    """
    if not workflows:
        return
    waiting, began = deque[tuple[float, Sequence[Job]]](), _now()
    queued = (await graph.unfinished(worker.shard)).queued
    async for node_keys in _pages(database, workflows):
        if worker.closed:
            return
        if wrong := await _differing(worker, projector, graph, node_keys, queued):
            waiting.append((_now() + RECOMPARE_SECONDS, wrong))
        await _pause_after(began, share)
        while waiting and waiting[0][0] <= _now():
            if wrong := await _still(worker, projector, graph, waiting.popleft()[1]):
                yield wrong
        began = _now()
    for due, first in waiting:
        await asyncio.sleep(due - _now())
        if wrong := await _still(worker, projector, graph, first):
            yield wrong


async def _pages(database: Database, workflows: Sequence[str]) -> AsyncIterator[list[NodeKey]]:
    """Yield the keys of all nodes of the workflows in pages of one size, which may span workflows."""
    page: list[NodeKey] = []
    async for node_keys in _reads(database, workflows):
        page += node_keys
        while len(page) >= BATCH:
            yield page[:BATCH]
            del page[:BATCH]
    if page:
        yield page


async def _reads(database: Database, workflows: Sequence[str]) -> AsyncIterator[list[NodeKey]]:
    """Yield the node keys of one workflow after another; one read brings the first nodes of several workflows."""
    for at in range(0, len(workflows), TOGETHER):
        together = workflows[at : at + TOGETHER]
        for workflow, first in zip(together, await database.read(partial(_few, workflows=together)), strict=True):
            nodes, limit = first, MAX_NODES_READ_TOGETHER
            yield [NodeKey(workflow, node) for node in nodes]
            while len(nodes) == limit:
                nodes, limit = await database.read(partial(_names, workflow=workflow, after=nodes[-1])), BATCH
                yield [NodeKey(workflow, node) for node in nodes]


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _pause_after(began: float, share: float) -> None:
    """Pause so that what began at `began` takes the share of the time until the end of the pause, or 30 seconds."""
    await asyncio.sleep(min((_now() - began) * (1 / share - 1), LONGEST_COMPARE_PAUSE_SECONDS))


async def _still(worker: ShardWorker, projector: Projector, graph: TaskGraph, first: Collection[Job]) -> list[Job]:
    """Compare jobs with RQ a second time; return the jobs that still differ and whose nodes have not changed."""
    second = await _differing(worker, projector, graph, [NodeKey(job.workflow, job.node) for job in first])
    known = frozenset(first)
    return [job for job in second if job in known]


async def _differing(
    worker: ShardWorker,
    projector: Projector,
    graph: TaskGraph,
    node_keys: Sequence[NodeKey],
    queued: Collection[Key] = (),
) -> Sequence[Job]:
    """Return the jobs of the given nodes that RQ lacks, or has in another state than the ledger."""
    jobs = [projector.job(node) for node in await _seen(worker, tuple(node_keys))]
    await projector.flushed()
    return await graph.difference(jobs, queued)


async def _seen(worker: ShardWorker, node_keys: tuple[NodeKey, ...]) -> list[NodeSnapshot]:
    """Read the current snapshots of the given nodes from the ledger, without nodes that do not exist."""
    seen: list[NodeSnapshot] = []
    while node_keys:
        found: list[NodeSnapshot] = await worker.ask(Look(node_keys))
        if not found:
            break
        seen += found
        node_keys = node_keys[node_keys.index(found[-1].node_key) + 1 :]
    return seen


def _few(tr: Reads, *, workflows: Sequence[str]) -> list[list[str]]:
    found = tr.get_ranges([STATUSES.range((workflow,)) for workflow in workflows], limit=MAX_NODES_READ_TOGETHER)
    return [[str(STATUSES.unpack(key)[1]) for key, _ in rows] for rows in found]


def _names(tr: Reads, *, workflow: str, after: str) -> list[str]:
    rows = tr.get_range(*STATUSES.behind((workflow,), (after,)), limit=BATCH)
    return [str(STATUSES.unpack(key)[1]) for key, _ in rows]
