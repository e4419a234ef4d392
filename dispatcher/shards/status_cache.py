"""Where the workflows of one shard are, in memory: for who asks again and again while they run.

The shard has one owner, so what its last commit wrote is what the ledger has; when it is not known whether one was
written, everything is forgotten. A dispatcher that stood still while another took the shard may tell an older state
until it sees that, with its next turn or step of the leases; never an end that was not. Only what was asked for is
kept, and only until it ends: everything else is read from the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.ledger.rows import RunRecord, WorkflowRecord

MOST = 10_000


class StatusCache:
    """The rows of workflows that somebody asked for and that have not ended."""

    def __init__(self, most: int = MOST) -> None:
        """Forgets all of them when there are more than `most`."""
        self._most = most
        self._heads: dict[str, WorkflowRecord] = {}
        self._runs: dict[str, RunRecord] = {}

    def get(self, workflow: str) -> tuple[WorkflowRecord, RunRecord] | None:
        """Its rows after the last commit; None when the ledger has to be asked."""
        run = self._runs.get(workflow)
        return None if run is None else (self._heads[workflow], run)

    def follow(self, workflow: str, head: WorkflowRecord) -> None:
        """Somebody asked: its row is kept from the next commit on."""
        if len(self._heads) >= self._most:
            self.clear()
        self._heads[workflow] = head

    def note(self, runs: Iterable[tuple[str, RunRecord]]) -> None:
        """These rows were committed."""
        for workflow, run in runs:
            if run.state.terminal:
                self._heads.pop(workflow, None)
                self._runs.pop(workflow, None)
            elif workflow in self._heads:
                self._runs[workflow] = run

    def clear(self) -> None:
        """Something else may have been committed: everything is read from the ledger again."""
        self._heads.clear()
        self._runs.clear()
