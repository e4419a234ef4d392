"""Showing: RQ is told what one shard's commits changed, so that its own tools show the graph as the ledger has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from coditect.model.capability import Priority
from coditect.model.result import Failure
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeSnapshot, Transition
from dispatcher.taskgraph.port import MOST_RESULT_BYTES, Change, Job, TaskGraph
from dispatcher.taskgraph.projection import Entry, Projection
from dispatcher.taskgraph.states import job_state

MOST_WITH_OUTCOMES = 10_000
"""Waiting entries that keep what their nodes ended with, of 1 kB at most: a Redis that is away is to cost no more."""


class Projector:
    """The entries of one shard, in the order of its commits. `run` tells them until it is canceled."""

    def __init__(self, graph: TaskGraph, shard: int, *, moved: Callable[[], None]) -> None:
        """`moved` is called when RQ may have queued something."""
        self._shard = shard
        self._projection = Projection(graph, shard, moved=moved)
        self._number = 0

    @property
    def waiting(self) -> int:
        """Entries that RQ was not told yet."""
        return len(self._projection)

    def follow(self, effects: Effects) -> None:
        """Adds what one commit changed; of a node that changed twice, how it is now.

        What RQ itself brought it has as started. What is shown is made, or put right where RQ has it otherwise. All of
        a workflow that was accepted just now is shown, here or by the next turn, as it is then.
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
        """Whether entries were thrown away because there were too many: show everything, then call `reconciled`."""
        return self._projection.overflowed

    def reconciled(self) -> None:
        """Everything is about to be shown."""
        self._projection.reconciled()

    async def told(self) -> None:
        """Returns when RQ was told all that there is now, or when nobody tells it any more."""
        await self._projection.drained()

    async def tell_last(self, seconds: float) -> None:
        """Waits at most so long for RQ to be told, and not for a Redis that is away: the next owner compares."""
        if self._projection.available:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.told()

    def close(self) -> None:
        """The shard is not worked for here any more: nothing is told from now on."""
        self._projection.close()

    async def run(self) -> None:
        """Tells RQ."""
        await self._projection.run()

    def job(self, shown: NodeSnapshot) -> Job:
        """The node as RQ is to have it."""
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
