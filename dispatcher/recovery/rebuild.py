"""The rebuild of one shard's queues, published tasks and RQ jobs from the ledger, on demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.broker.topology import base_topology, control_plane, notices, shard_queues
from coditect.broker.topology_diff import declare_missing
from coditect.errors import Retryable
from dispatcher.ledger.commands import Continue, Show
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import Incarnation
from dispatcher.ledger.workflows.republish import Built, built, left_over
from dispatcher.ledger.workflows.status import live
from dispatcher.liveness.broker_epoch import BrokerEpoch
from dispatcher.ports import Ports
from dispatcher.scheduling.reconciler import drift
from dispatcher.shards.completions import pass_on
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.port import Database
from dispatcher.taskgraph.port import TaskGraph, TaskGraphUnavailable

log = logging.getLogger(__name__)

COMPARE_SECONDS = 10.0
"""The time limit for the comparison of RQ with the ledger during a rebuild."""


async def rebuild(
    ports: Ports, markers: BrokerEpoch, worker: ShardWorker, occasion: str, *, graph: TaskGraph | None = None
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
    # before RQ is told what the walk does: it gets lost jobs, too
    wrong = await _wrong(ports, worker, graph, workflows)
    noted = asyncio.get_running_loop().create_future()
    known, marker = worker.marker, await markers.of_broker(worker.marker)
    worker.rebuild(marker, occasion, partial(pass_on, noted), kept=marker == known and await markers.is_there(marker))
    await noted
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


async def _walked(ports: Ports, worker: ShardWorker) -> Built:
    """Have a shard's worker publish the rest of a rebuild's tasks again; return the rebuild's record with counts."""
    before: bytes | None = b""
    while True:
        has_gone_on = False
        try:  # behind what is published again without a walk; the walk comes first of all that is left over
            has_gone_on = await worker.ask(Continue())
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


# The start of a store's incarnation by a dispatcher, numbered above the highest one that Redis remembers.

REDIS_ANSWER_SECONDS = 1.0
"""The most seconds for which the start of a dispatcher waits for Redis."""
INCARNATION_RETRY_SECONDS = 5.0
"""The seconds between two tries to record the incarnation in Redis."""


async def begin_incarnation(
    database: Database, graph: TaskGraph | None, clock: Clock, background: Supervisor
) -> Incarnation:
    """Begin a store's next incarnation; if Redis knows a higher number, treat the store as restored: republish all.

    Its number is above the store's last one and, if Redis answers, above the number in Redis. The new number is written
    to Redis in the background.

    Raises:
        CoditectError: any error of `Database.run`.
    """
    before = await database.read(incarnation.current)
    known = 0
    if graph is not None and before is not None:
        try:
            async with asyncio.timeout(REDIS_ANSWER_SECONDS):
                known = await graph.incarnation(before.store)
        except (Retryable, TimeoutError) as error:
            fix = "when the store was restored from a backup: coditect dispatcher restore"
            log.info("Redis does not say what it knows of the store", extra={"reason": repr(error), "fix": fix})
    begun = await database.run(partial(incarnation.begin, new_id=clock.new_id(), known=known))
    if begun.is_restored:
        log.warning(
            "The store is older than Redis remembers it: it was restored, and all that is published is published again",
            extra={"store": begun.store, "incarnation": begun.number},
        )
    if graph is not None:
        background.start(_record_in_redis(graph, begun), name="tell Redis of the store's incarnation")
    return begun


async def _record_in_redis(graph: TaskGraph, begun: Incarnation) -> None:
    while True:
        try:
            await graph.incarnation(begun.store, begun.number)
            return
        except Retryable as error:
            log.debug("The incarnation could not be written to Redis yet", extra={"reason": str(error)})
        await asyncio.sleep(INCARNATION_RETRY_SECONDS)
