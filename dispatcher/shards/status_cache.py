"""A cache in memory of the states of one shard's running workflows, for clients that poll them.

The shard has one owner, so its last commit wrote the ledger's current rows; when the outcome of a commit is unknown,
the cache is emptied. A dispatcher that stood still while another took the shard may give an older state until its next
batch or its next step of the leases shows the loss; never a final state that did not happen. Only workflows that a
client asked for are kept, and only until they end: everything else is read from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.ledger.rows import RunRecord, WorkflowRecord

MOST = 10_000


class StatusCache:
    """The cached rows of running workflows whose state a client has asked for."""

    def __init__(self, most: int = MOST) -> None:
        """Make an empty cache of at most `most` workflows; a cache that would hold more is emptied."""
        self._most = most
        self._heads: dict[str, WorkflowRecord] = {}
        self._runs: dict[str, RunRecord] = {}

    def get(self, workflow: str) -> tuple[WorkflowRecord, RunRecord] | None:
        """Return a workflow's cached rows as of the last commit; None when the caller must read the ledger."""
        run = self._runs.get(workflow)
        return None if run is None else (self._heads[workflow], run)

    def follow(self, workflow: str, head: WorkflowRecord) -> None:
        """Cache a workflow's rows from the next commit on, because a client asked for the workflow's state."""
        if len(self._heads) >= self._most:
            self.clear()
        self._heads[workflow] = head

    def note(self, runs: Iterable[tuple[str, RunRecord]]) -> None:
        """Update the cached workflows with committed rows, and drop the workflows that have ended."""
        for workflow, run in runs:
            if run.state.terminal:
                self._heads.pop(workflow, None)
                self._runs.pop(workflow, None)
            elif workflow in self._heads:
                self._runs[workflow] = run

    def clear(self) -> None:
        """Empty the cache, because it is full, or a commit with an unknown outcome may have changed the rows."""
        self._heads.clear()
        self._runs.clear()
