"""The removal of old workflows and unfinished submissions (uploads) from the store, in pages of one transaction.

A workflow to remove is first turned into an upload that will never be finished: from then on no query shows it, and
nothing can bring it back. Unfinished uploads, these among them, are then removed page by page; the upload's own row
goes last, so an interrupted removal goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coditect.wire.control import workflow_space
from coditect.workflow.states import WorkflowState
from dispatcher.ledger import idempotency, timers, versions
from dispatcher.ledger.keyspace import (
    ATTEMPTS,
    AWAITING,
    CHECKPOINTS,
    CHILDREN,
    COMPENSATE,
    DEAD,
    DECISIONS,
    EDGES,
    ENDED,
    EXPIRIES,
    HANDOFFS,
    KEY_EXPIRIES,
    LABELED,
    NODES,
    RESTORES,
    RUNS,
    SHOWN,
    SIGNALS,
    SIGNALS_KEPT,
    SPACE_VERSIONS,
    SPACES,
    STATES,
    STATUSES,
    UPLOADS,
    VALUES,
    WORKFLOWS,
)
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.store.keys import Space
from dispatcher.store.transaction import Reads, Transaction

_FAILED = (WorkflowState.FAILED, WorkflowState.REJECTED)
MAX_REMOVED_ROWS = 1_000
"""The largest number of small rows that one transaction removes."""
MAX_NODES_READ = 500
"""The largest number of node names that one read returns."""
MAX_REMOVED_LARGE_ROWS = 40
"""The largest number of rows that one transaction removes where a row may be large."""
KEPT_VALUES = "kept"
_CONDEMNED = versions.UPLOAD.pack((0, 0, 0))
PARTS: tuple[tuple[Space, int], ...] = (
    (ATTEMPTS, MAX_REMOVED_ROWS),
    (CHILDREN, MAX_REMOVED_ROWS),
    (COMPENSATE, MAX_REMOVED_ROWS),
    (CHECKPOINTS, MAX_REMOVED_ROWS),
    (RESTORES, MAX_REMOVED_ROWS),
    (DEAD, MAX_REMOVED_ROWS),
    (DECISIONS, MAX_REMOVED_ROWS),
    (EDGES, MAX_REMOVED_ROWS),
    (AWAITING, MAX_REMOVED_ROWS),
    (SIGNALS, MAX_REMOVED_ROWS),
    (SIGNALS_KEPT, MAX_REMOVED_ROWS),
    (HANDOFFS, MAX_REMOVED_LARGE_ROWS),
    (NODES, MAX_REMOVED_LARGE_ROWS),
    (VALUES, MAX_REMOVED_LARGE_ROWS),
)
STATE_PARTS: tuple[tuple[Space, int], ...] = (
    (SPACES, MAX_REMOVED_ROWS),
    (SPACE_VERSIONS, MAX_REMOVED_ROWS),
    (VALUES, MAX_REMOVED_LARGE_ROWS),
)
"""The kinds of rows of a workflow's shared state, whose keys have the name of its space in place of its id."""


@dataclass(frozen=True, slots=True)
class EndedPage:
    """A page of a shard's ended workflows, whose data or RQ jobs are to be removed, and the cursor of the next page."""

    workflows: tuple[str, ...]
    cursor: tuple[int, str] | None
    """The end time and the id of the last workflow that the page examined; None for an empty page."""


def ended(tr: Reads, shard: int, before_ms: int, limit: int) -> EndedPage:
    """Return the next page of a shard's workflows that ended before the given instant, the oldest first."""
    found = _ended(tr, shard, before_ms, KEPT_VALUES, limit)
    return EndedPage(tuple(workflow for _, workflow in found), found[-1] if found else None)


def expired(tr: Reads, shard: int, now_ms: int, limit: int) -> list[str]:
    """Return the ids of the shard's first `limit` workflows whose own retention is over, the first to expire first."""
    rows = tr.get_range(EXPIRIES.range((shard,))[0], EXPIRIES.pack((shard, now_ms)), limit=limit)
    return [str(EXPIRIES.unpack(key)[2]) for key, _ in rows]


def _ended(tr: Reads, shard: int, before_ms: int, which: str, limit: int) -> list[tuple[int, str]]:
    stored = tr.get(SHOWN.pack((shard, which)))
    begin, _ = ENDED.behind((shard,), () if stored is None else tuple(versions.SHOWN_CURSOR.unpack(stored)))
    stop = ENDED.pack((shard, before_ms))
    rows = tr.get_range(begin, stop, limit=limit) if begin < stop else []
    return [(int(at), str(workflow)) for _, at, workflow in (ENDED.unpack(key) for key, _ in rows)]


def note_kept(tr: Transaction, shard: int, cursor: tuple[int, str]) -> None:
    """Record up to which end time a shard's ended workflows are removed, but for those with a longer retention."""
    tr.set(SHOWN.pack((shard, KEPT_VALUES)), versions.SHOWN_CURSOR.pack(cursor))


def shown(tr: Reads, shard: int, before_ms: int, *, failed: bool, limit: int = MAX_REMOVED_LARGE_ROWS) -> EndedPage:
    """Return the next page of a shard's ended workflows, failed ones or all others, that may still have jobs in RQ."""
    ended = _ended(tr, shard, before_ms, _which(failed), limit)
    runs = tr.get_many([RUNS.pack((workflow,)) for _, workflow in ended])
    wanted = [
        workflow
        for (_, workflow), run in zip(ended, runs, strict=True)
        if run is not None and (RunRecord.unpack(run).state in _FAILED) is failed
    ]
    return EndedPage(tuple(wanted), ended[-1] if ended else None)


def note_shown(tr: Transaction, shard: int, cursor: tuple[int, str], *, failed: bool) -> None:
    """Record that RQ has no jobs of the shard's ended workflows up to the cursor: an end time and a workflow id."""
    tr.set(SHOWN.pack((shard, _which(failed))), versions.SHOWN_CURSOR.pack(cursor))


def _which(failed: bool) -> str:
    return "failed" if failed else "all"


def condemn(tr: Transaction, workflow: str, *, before_ms: int) -> bool:
    """Hide an ended workflow and its children from queries, for removal; False if too young, or its parent is kept.

    The workflow must have ended before `before_ms`, or, with a retention of its own, by so much earlier.
    """
    head, found = tr.get(WORKFLOWS.pack((workflow,))), tr.get(RUNS.pack((workflow,)))
    if head is None or found is None:
        return False
    row, run = WorkflowRecord.unpack(head), RunRecord.unpack(found)
    if not run.state.terminal or run.finished_ms is None or run.finished_ms + (row.keep_ms or 0) >= before_ms:
        return False
    if row.parent is not None and tr.get(RUNS.pack((row.parent.workflow,))) is not None:
        return False  # it goes with its parent, which may have it undo what it did
    tr.clear(RUNS.pack((workflow,)))
    tr.clear(STATES.pack((run.state.value, workflow)))
    row.forget_end(tr, workflow, run.finished_ms)
    for label in row.labels.items():
        tr.clear(LABELED.pack((*label, workflow)))
    if row.key:
        idempotency.forget(tr, row.key, workflow)
    tr.set(UPLOADS.pack((workflow,)), _CONDEMNED)
    for _, child in tr.get_range(*CHILDREN.range((workflow,))):
        condemn(tr, child.decode(), before_ms=before_ms)
    return True


def unfinished(tr: Reads, before_ms: int, *, after: str = "", limit: int = MAX_REMOVED_ROWS) -> tuple[list[str], str]:
    """Return some ids of workflows under removal and submissions unfinished since before `before_ms`, and a cursor.

    A hidden workflow counts as old. The cursor is empty on the last page.
    """
    rows = tr.get_range(*UPLOADS.behind((), (after,)), limit=limit)
    found = [str(UPLOADS.unpack(key)[0]) for key, row in rows if int(versions.UPLOAD.unpack(row)[1]) < before_ms]
    return found, str(UPLOADS.unpack(rows[-1][0])[0]) if len(rows) == limit else ""


def nodes_of(tr: Reads, workflow: str, *, after: str = "", limit: int = MAX_NODES_READ) -> list[str]:
    """Return the first `limit` names of a workflow's nodes that follow `after`, in order."""
    rows = tr.get_range(*STATUSES.behind((workflow,), (after,)), limit=limit)
    return [str(STATUSES.unpack(key)[1]) for key, _ in rows]


def take_apart(tr: Transaction, workflow: str, *, before_ms: int) -> bool:
    """Remove a page of the rows of an unfinished submission or a workflow under removal; return False if none are left.

    An upload that was accepted meanwhile, or is younger, stays as it is. The rows that `forget` removes stay, too.
    """
    if not _is_going(tr, workflow, before_ms):
        return False
    tr.set(UPLOADS.pack((workflow,)), _CONDEMNED)  # a chunk that comes now is refused: it is not the first
    if timers.cancel_all(tr, workflow, limit=MAX_REMOVED_ROWS) == MAX_REMOVED_ROWS:
        return True
    parts = [(*part, workflow) for part in PARTS] + [(*part, workflow_space(workflow)) for part in STATE_PARTS]
    for space, row_limit, prefix in parts:
        begin, end = space.range((prefix,))
        page = tr.get_range(begin, end, limit=row_limit)
        if page:
            tr.clear_range(begin, page[-1][0] + b"\0")
            return True
    return False


def forget(tr: Transaction, workflow: str, nodes: Sequence[str], *, before_ms: int) -> None:
    """Remove given nodes' status rows of a workflow under removal or unfinished upload; without nodes, its own rows."""
    if not _is_going(tr, workflow, before_ms):
        return
    for node in nodes:
        tr.clear(STATUSES.pack((workflow, node)))
    if not nodes:
        tr.clear(WORKFLOWS.pack((workflow,)))
        tr.clear(UPLOADS.pack((workflow,)))


def _is_going(tr: Transaction, workflow: str, before_ms: int) -> bool:
    row = tr.get(UPLOADS.pack((workflow,)))
    return row is not None and int(versions.UPLOAD.unpack(row)[1]) < before_ms


def keep_keys(tr: Transaction, *, now_ms: int, ahead_ms: int, limit: int = MAX_REMOVED_ROWS) -> int:
    """Extend the soon expiring idempotency keys of workflows that have not ended; return how many were extended."""
    kept = 0
    begin, end = KEY_EXPIRIES.range()[0], KEY_EXPIRIES.pack((now_ms + ahead_ms,))
    for expiry, _ in tr.snapshot.get_range(begin, end, limit=limit):
        key = str(KEY_EXPIRIES.unpack(expiry)[1])
        workflow = idempotency.holder(tr, key)
        found = None if workflow is None else tr.get(RUNS.pack((workflow,)))
        if workflow is not None and found is not None and not RunRecord.unpack(found).state.terminal:
            kept += idempotency.keep(tr, key, workflow, until_ms=now_ms + idempotency.KEY_RETENTION_MS)
    return kept
