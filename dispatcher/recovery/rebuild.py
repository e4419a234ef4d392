"""The rebuild of one shard's queues, published tasks and RQ jobs from the ledger, on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from coditect.broker.declaring import declare_missing
from coditect.broker.topology import base_topology, control_plane, notices, shard_queues
from coditect.errors import Retryable
from dispatcher.ledger.commands import GoOn, Show
from dispatcher.ledger.workflows.republish import Built, built, left_over
from dispatcher.ledger.workflows.status import live
from dispatcher.liveness.broker_epoch import BrokerEpoch
from dispatcher.ports import Ports
from dispatcher.scheduling.reconciler import drift
from dispatcher.shards.completions import CommandAnswer
from dispatcher.shards.worker import ShardWorker
from dispatcher.taskgraph.port import TaskGraph, TaskGraphUnavailable

log = logging.getLogger(__name__)

COMPARE_SECONDS = 10.0
"""The time limit for the comparison of RQ with the ledger during a rebuild."""


async def rebuild(
    ports: Ports, worker: ShardWorker, markers: BrokerEpoch, occasion: str, *, graph: TaskGraph | None = None
) -> dict[str, Any]:
    """Restore a shard's missing queues, published tasks and RQ jobs from the ledger, and return their counts.

    The answer counts what was missing by kind, and says whether RQ was `compared` to the end: if not, more of its jobs
    may have been missing than are counted. A second call for the same occasion publishes nothing more.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
        CoditectError: any error of the store.
    """
    ours = control_plane() + shard_queues(worker.shard)
    queues = await declare_missing(ports.broker, base_topology() + ours + notices())
    workflows = await ports.database.read(lambda tr: live(tr, worker.shard))
    wrong = await _wrong(
        ports, worker, graph, workflows
    )  # before RQ is told what the walk does: it gets lost jobs, too
    noted: CommandAnswer[int] = CommandAnswer()
    known, marker = worker.marker, await markers.of_broker(worker.marker)
    worker.rebuild(marker, occasion, noted, kept=marker == known and await markers.is_there(marker))
    await noted.future
    walked = await _walked(ports, worker)
    for workflow in workflows:
        worker.put(Show(workflow))
    return {
        "shard": worker.shard,
        "marker": worker.marker,
        "queues": queues,
        "published": walked.published,
        "working": walked.working,
        **wrong,
    }


async def rebuild_shard(
    ports: Ports,
    workers: Mapping[int, ShardWorker],
    markers: BrokerEpoch,
    shard: int,
    occasion: str,
    *,
    graph: TaskGraph | None,
) -> dict[str, Any] | None:
    """Restore a shard's missing queues, published tasks and RQ jobs, and return the counts; None if not owned here."""
    worker = workers.get(shard)
    return None if worker is None or worker.closed else await rebuild(ports, worker, markers, occasion, graph=graph)


async def _walked(ports: Ports, worker: ShardWorker) -> Built:
    """Have a shard's worker publish the rest of a rebuild's tasks again; return the rebuild's record with counts."""
    before: bytes | None = b""
    while True:
        has_gone_on, gone_on = False, CommandAnswer[bool]()
        worker.put(GoOn(), gone_on)  # behind what is published again without a walk
        try:
            has_gone_on = await gone_on.future  # the walk comes first of all that is left over
        except Retryable:  # something else that is left over was set aside: this goes on without it
            if worker.closed:
                raise
        found, left = await ports.database.read(lambda tr: (built(tr, worker.shard), left_over(tr, worker.shard)))
        if left is None or (has_gone_on and left == before):
            return found
        before = left


async def _wrong(
    ports: Ports, worker: ShardWorker, graph: TaskGraph | None, workflows: Sequence[str]
) -> dict[str, Any]:
    """Return the numbers of workflows and jobs that RQ lacks or has in a wrong state, and whether all were compared."""
    found, jobs, compared = set[str](), 0, True
    try:
        if graph is not None and worker.projector is not None:
            async with asyncio.timeout(COMPARE_SECONDS):
                async for page in drift(ports.database, worker, worker.projector, graph, workflows):
                    found.update(job.workflow for job in page)
                    jobs += len(page)
    except (TimeoutError, TaskGraphUnavailable) as error:
        log.warning(
            "RQ could not be compared; it is shown everything", extra={"shard": worker.shard, "reason": repr(error)}
        )
        compared = False
    return {"workflows": len(found), "jobs": jobs, "compared": compared}
