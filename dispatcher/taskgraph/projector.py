"""The projector of one shard's commits into RQ, so that RQ's tools show the graph as the ledger has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from coditect.model.capability import Priority
from coditect.model.result import Failure
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeSnapshot, Transition
from dispatcher.taskgraph.port import MOST_RESULT_BYTES, Change, Job, TaskGraph, job_state
from dispatcher.taskgraph.projection import Entry, Projection

MOST_WITH_OUTCOMES = 10_000
"""The number of waiting entries up to which outcomes of 1 kB each are kept, to bound the cost of an absent Redis."""


class Projector:
    """The projector of one shard, in the order of its commits; `run` writes to RQ until canceled."""

    def __init__(self, graph: TaskGraph, shard: int, *, moved: Callable[[], None]) -> None:
        """Prepare a queue of changes; `moved` is called when RQ may have queued a job."""
        self._shard = shard
        self._projection = Projection(graph, shard, moved=moved)
        self._number = 0

    @property
    def waiting(self) -> int:
        """The number of entries that are not in RQ yet."""
        return len(self._projection)

    def follow(self, effects: Effects) -> None:
        """Add the changes of one commit; of a node that changed twice, the last one.

        RQ has a node that it proposed as started already. A shown node is created in RQ, or corrected where RQ differs.
        All nodes of a newly accepted workflow are shown, here or by a later batch, as they are then.
        """
        accepted = set(effects.accepted)
        last = {moved.node_key: moved for moved in effects.moved if moved.node_key.workflow not in accepted}
        entries: list[Entry] = [self.job(one) for one in effects.shown]
        told = effects if len(self._projection) < MOST_WITH_OUTCOMES else Effects()
        entries += [
            self._change(one, told.results.get(at), told.failures.get(at))
            for at, one in last.items()
            if one.state is not TaskState.PUBLISHED or at not in effects.adopted
        ]
        if entries:
            self._number += 1
            self._projection.append(self._number, entries)

    @property
    def overflowed(self) -> bool:
        """Whether changes were dropped because too many waited: show all nodes, then call `reconciled`."""
        return self._projection.overflowed

    def reconciled(self) -> None:
        """Note that all nodes are about to be shown, so that the queue takes changes again."""
        self._projection.reconciled()

    async def told(self) -> None:
        """Wait until all present changes are in RQ, or thrown away."""
        await self._projection.drained()

    async def tell_last(self, seconds: float) -> None:
        """Wait at most `seconds` for the present changes to be written; not at all while Redis is absent."""
        if self._projection.available:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.told()

    def close(self) -> None:
        """Stop writing, because the dispatcher no longer works for the shard."""
        self._projection.close()

    async def run(self) -> None:
        """Write the entries to RQ until canceled."""
        await self._projection.run()

    def job(self, shown: NodeSnapshot) -> Job:
        """Return the node's job as RQ is to have it."""
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


def _error(failure: Failure) -> str:
    return ": ".join(part for part in (failure.reason, failure.type, failure.message) if part)[:MOST_RESULT_BYTES]


def _level(text: str) -> Priority:
    return Priority(text) if text else Priority.P1
