"""The state of one shard's running workflows in memory, for clients that poll it.

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
    """The progress of workflows that clients asked for and that have not ended, by workflow."""

    def __init__(self, most: int = MOST) -> None:
        """Keep at most `most` workflows: the cache is emptied when it would hold more."""
        self._most = most
        self._heads: dict[str, WorkflowRecord] = {}
        self._runs: dict[str, RunRecord] = {}

    def get(self, workflow: str) -> tuple[WorkflowRecord, RunRecord] | None:
        """Return a workflow's rows as of the last commit; None when the cache does not have them."""
        run = self._runs.get(workflow)
        return None if run is None else (self._heads[workflow], run)

    def follow(self, workflow: str, head: WorkflowRecord) -> None:
        """Keep a workflow's rows in the cache from the next commit on, because a client asked for them."""
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
        """Empty the cache, because a transaction with a lost answer may have changed the rows."""
        self._heads.clear()
        self._runs.clear()
