"""A cache in memory of the states of one shard's running workflows, for clients that poll them or wait for their ends.

The shard has one owner, so its last commit wrote the ledger's current rows; when the outcome of a commit is unknown,
the cache is emptied. A dispatcher that stood still while another took the shard may give an older state until its next
batch or its next step of the leases shows the loss; never a final state that did not happen. Only workflows that a
client asked for are kept, and only until they end: everything else is read from the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import Effects, NodeKey, Transition
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.ledger.workflows.queries import completed

MAX_CACHED_STATES = 10_000
MAX_WAITS = 10_000
"""The number of requests of one shard that are held; those beyond it are answered at once."""


Turn: TypeAlias = asyncio.Future[dict[str, Any] | None]
"""The future of a held request: the answer, or None when the ledger has to be read for it."""


class StatusCache:
    """The cached rows of running workflows whose state a client has asked for."""

    def __init__(self, max_states: int = MAX_CACHED_STATES) -> None:
        """Make an empty cache of at most `most` workflows; a cache that would hold more is emptied."""
        self._max_states = max_states
        self._heads: dict[str, WorkflowRecord] = {}
        self._runs: dict[str, RunRecord] = {}
        self._waits: dict[NodeKey, set[Turn]] = {}
        self.held = 0
        """The number of requests that wait for an end."""

    def get(self, workflow: str) -> tuple[WorkflowRecord, RunRecord] | None:
        """Return a workflow's cached rows as of the last commit; None when the caller must read the ledger."""
        run = self._runs.get(workflow)
        return None if run is None else (self._heads[workflow], run)

    def follow(self, workflow: str, head: WorkflowRecord) -> None:
        """Cache a workflow's rows from the next commit on, because a client asked for the workflow's state."""
        if len(self._heads) >= self._max_states:
            self._empty()
        self._heads[workflow] = head

    @contextmanager
    def waiting(self, node_key: NodeKey) -> Iterator[Turn]:
        """Yield a future that is done when a commit ends the node, or with an empty name the workflow.

        It is also done when only the ledger can tell: after a commit with an unknown outcome, when the shard goes to
        another dispatcher, and at once when too many wait.
        """
        turn: Turn = asyncio.get_running_loop().create_future()
        if self.held >= MAX_WAITS:
            turn.set_result(None)
        turns = self._waits.setdefault(node_key, set())
        turns.add(turn)
        self.held += 1
        try:
            yield turn
        finally:
            self.held -= 1
            turns.discard(turn)
            if not turns:
                del self._waits[node_key]

    def note(self, effects: Effects) -> None:
        """Apply a commit: update the cached rows, drop ended workflows, and answer requests that wait for an end."""
        for workflow, run in effects.runs:
            if run.state.terminal:
                self._heads.pop(workflow, None)
                self._runs.pop(workflow, None)
                self._wake(NodeKey(workflow, ""))
            elif workflow in self._heads:
                self._runs[workflow] = run
        if self._waits:
            for moved in effects.transitions:
                if moved.node_key in self._waits and moved.state.terminal:
                    self._wake(moved.node_key, _answer(moved, effects))

    def _wake(self, key: NodeKey, answer: dict[str, Any] | None = None) -> None:
        for turn in self._waits.get(key, ()):
            if not turn.done():
                turn.set_result(answer)

    def clear(self) -> None:
        """Empty the cache and wake all who wait: only the ledger can tell, such as after a commit that is unknown."""
        self._empty()
        for key in self._waits:
            self._wake(key)

    def _empty(self) -> None:
        self._heads.clear()
        self._runs.clear()


def _answer(moved: Transition, effects: Effects) -> dict[str, Any] | None:
    """Return the answer about a node that completed in a commit, which saves a read; None about any other end."""
    value = effects.results.get(moved.node_key)
    if value is None or moved.row.state is not TaskState.COMPLETED:
        return None
    return completed(moved.node_key.node, moved.row, value)
