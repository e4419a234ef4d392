"""The removal of old data by one dispatcher: workflows, RQ jobs, keys, answers, unfinished uploads and audit entries.

==========================================  ==============================================================
what                                        when
==========================================  ==============================================================
an upload that was not finished             an hour after its first chunk
a workflow that has ended, with its         `CODITECT_KEEP_DAYS` after its end (7)
values, its attempts, its idempotency key
and its jobs in RQ
a child of a workflow                       with its parent
a workflow's jobs in RQ                     a minute after its end; an hour after it, if it failed
an idempotency key                          a week after its workflow was accepted, but not before it ended
the answer to a request                     a day after it
the end of a ticket, such as a lock's       ten minutes after it
an entry of the audit trail, a counter of   `CODITECT_KEEP_AUDIT_DAYS` after it (365)
what finished without a person
==========================================  ==============================================================

Everything is done in pages, each its own transaction, which commits only while the lease is held; between two pages
other transactions run. RQ's jobs go first: while Redis does not answer, no workflow is removed whose jobs would stay.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from coditect.errors import CoditectError
from dispatcher.ledger import answers, idempotency
from dispatcher.ledger.audit import autonomy, trail
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.workflows import remove
from dispatcher.ports import Ports
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.port import TaskGraph

log = logging.getLogger(__name__)

SWEEP_LEASE: leases.Name = ("leader", "sweep")
SWEEP_SECONDS = 60.0
"""The pause between two rounds of removals."""
UPLOAD_MS = 3_600_000
SHOWN_MS = 60_000
"""The time for which the jobs of a workflow stay in RQ after its end."""
SHOWN_FAILED_MS = 3_600_000
"""The time for which the jobs of a failed or rejected workflow stay in RQ after its end."""
KEY_AHEAD_MS = 24 * 3_600_000
"""The remaining time at which the idempotency key of a live workflow is extended."""
MOST_ENDED = 100
"""The most ended workflows of one shard that are removed before those of the next shard."""
DAY_MS = 24 * 3_600_000

Value = TypeVar("Value")


class Retention:
    """The remover of old data in one dispatcher, which works only while it holds the fleet's retention lease."""

    def __init__(
        self, ports: Ports, *, owner: str, graph: TaskGraph | None, keep_days: float, keep_audit_days: float = 365.0
    ) -> None:
        self._ports = ports
        self._owner = owner
        self._graph = graph
        self._keep_ms = round(keep_days * DAY_MS)
        self._keep_audit_ms = round(keep_audit_days * DAY_MS)

    async def run(self) -> None:
        """Remove old data every minute until canceled, unless another dispatcher holds the retention lease."""
        while True:
            try:
                await self.sweep()
            except CoditectError as error:
                log.info("A sweep was not finished; the next one goes on", extra={"reason": str(error)})
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> bool:
        """Remove old data of all shards once; return False when another dispatcher holds the retention lease.

        Raises:
            CoditectError: any error of the store or the task graph.
        """
        try:
            lease = await self._ports.database.run(lambda tr: leases.acquire(tr, SWEEP_LEASE, self._owner))
        except LostLease:
            return False
        if lease is None:
            return False
        now_ms = self._ports.clock.now_ms()
        await self._keys(lease, now_ms)
        await self._forget_jobs(lease, _before(now_ms, SHOWN_MS), failed=False)
        await self._forget_jobs(lease, _before(now_ms, SHOWN_FAILED_MS), failed=True)
        more = True
        while more:
            more = await self._condemn(lease, now_ms)
            await self._uploads(lease, _before(now_ms, UPLOAD_MS))
        for layer in (trail, autonomy):
            while await self._run(lease, partial(layer.sweep, before_ms=_before(now_ms, self._keep_audit_ms))):
                pass
        return True

    async def _keys(self, lease: Lease, now_ms: int) -> None:
        await self._run(lease, lambda tr: remove.keep_keys(tr, now_ms=now_ms, ahead_ms=KEY_AHEAD_MS))
        for layer in (idempotency, answers):
            expired = remove.MAX_REMOVED_ROWS
            while expired == remove.MAX_REMOVED_ROWS:
                expired = await self._run(lease, partial(layer.sweep, now_ms=now_ms))

    async def _forget_jobs(self, lease: Lease, before_ms: int, *, failed: bool) -> None:
        """Remove from RQ the jobs of workflows that ended before `before_ms`: failed and rejected ones, or the others.

        The job of an ended node takes 3 kB of Redis.
        """
        if self._graph is None:
            return
        read = self._ports.database.read
        for shard in range(await read(shards.fixed_count)):
            next_ones = partial(remove.shown, shard=shard, before_ms=before_ms, failed=failed)
            while (found := await read(next_ones)).cursor is not None:
                for workflow in found.workflows:
                    await self._forget_jobs_of(self._graph, workflow)
                note = partial(remove.note_shown, shard=shard, cursor=found.cursor, failed=failed)
                await self._run(lease, note)

    async def _forget_jobs_of(self, graph: TaskGraph, workflow: str) -> None:
        after = ""
        while nodes := await self._ports.database.read(partial(remove.nodes_of, workflow=workflow, after=after)):
            await graph.remove(workflow, nodes)
            after = nodes[-1]

    async def _condemn(self, lease: Lease, now_ms: int) -> bool:
        """Hide from queries a page of each shard's ended workflows whose own or default retention is over.

        Return whether there may be more of them.
        """
        read, before_ms, more = self._ports.database.read, _before(now_ms, self._keep_ms), False

        async def hide(workflow: str, before_ms: int) -> bool:
            return await self._run(lease, partial(remove.condemn, workflow=workflow, before_ms=before_ms))

        for shard in range(await read(shards.fixed_count)):
            found = await read(partial(remove.expired, shard=shard, now_ms=now_ms, limit=MOST_ENDED))
            expired = [await hide(workflow, now_ms) for workflow in found]
            page = await read(partial(remove.ended, shard=shard, before_ms=before_ms, limit=MOST_ENDED))
            hidden = [await hide(workflow, before_ms) for workflow in page.workflows]
            # those that keep themselves longer are not looked at again; clocks may differ by less than an hour
            if page.cursor is not None and not all(hidden) and page.cursor[0] < now_ms - SHOWN_FAILED_MS:
                await self._run(lease, partial(remove.note_kept, shard=shard, cursor=page.cursor))
            more = more or any(any(rows) and len(rows) == MOST_ENDED for rows in (expired, hidden))
        return more

    async def _uploads(self, lease: Lease, before_ms: int) -> None:
        after = ""
        while True:
            found, after = await self._ports.database.read(partial(remove.unfinished, before_ms=before_ms, after=after))
            for workflow in found:
                await self._take_apart(lease, workflow, before_ms)
            if not after:
                return

    async def _take_apart(self, lease: Lease, workflow: str, before_ms: int) -> None:
        left = True
        while left:
            left = await self._run(lease, lambda tr: remove.take_apart(tr, workflow, before_ms=before_ms))
        while True:
            nodes = await self._ports.database.read(partial(remove.nodes_of, workflow=workflow))
            if nodes and self._graph is not None:
                await self._graph.remove(workflow, nodes)
            await self._run(lease, partial(remove.forget, workflow=workflow, nodes=nodes, before_ms=before_ms))
            if not nodes:
                break
        log.debug("A workflow or an upload was taken away", extra={"workflow": workflow})

    async def _run(self, lease: Lease, body: Callable[[Transaction], Value]) -> Value:
        def checked(tr: Transaction) -> Value:
            leases.check(tr, lease)
            return body(tr)

        return await self._ports.database.run(checked)


def _before(now_ms: int, span_ms: int) -> int:
    """Return the instant that lies a span before now; 0, the epoch, for what is kept for longer than that."""
    return max(0, now_ms - span_ms)
