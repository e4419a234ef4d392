"""The counters of work that finished without a person, and of work that a person had a hand in.

Every transaction adds what ended in it, by hour, to counters that need no read (`Transaction.add`), one addition for
each capability and outcome of the whole batch. A redrive takes its node's end back, so a task counts once, as it ended
last. A task counts if it was published, or was decided about; what was canceled or skipped counts nowhere.

``("autonomy", hour, kind, name, outcome)``  kind: task (the name is the capability) or workflow; outcome: completed or
failed, with ``_by_hand`` behind it where a person approved, denied, redrove, resumed or restored.
"""

from __future__ import annotations

from collections import Counter

from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Effects
from dispatcher.ledger.keyspace import AUTONOMY
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads, Transaction, read_counter

COUNTED_SPAN_MS = 3_600_000  # an hour
TASK, WORKFLOW = "task", "workflow"
COMPLETED, FAILED, BY_HAND = "completed", "failed", "_by_hand"
MOST_REMOVED = 1_000
_OUTCOMES = {
    TaskState.COMPLETED: COMPLETED,
    TaskState.FAILED: FAILED,
    TaskState.DEAD: FAILED,
    TaskState.REJECTED: FAILED,
}
_DECIDED = frozenset({"refused_by_policy", "approval_timeout"})
"""The reasons with which an approval decision by no person ends a task; the task counts, even if never published."""


def count(tr: Transaction, effects: Effects, now_ms: int) -> None:
    """Count a transaction's completed and failed tasks and root workflows by hour, apart if a person took part.

    Not counted are canceled and skipped ones, and tasks that were never published or decided about.
    """
    found: Counter[tuple[str, str, str]] = Counter()
    for moved in effects.transitions:
        if (outcome := _OUTCOMES.get(moved.state)) is not None and moved.capability and _counts(moved.row):
            found[TASK, moved.capability, outcome + BY_HAND if moved.row.by_hand else outcome] += 1
    for end in effects.ended:
        if not end.is_child and end.state is not WorkflowState.CANCELED:
            found[WORKFLOW, "", _of_workflow(end.state, end.by_hand)] += 1
    for key, number in found.items():
        tr.add(AUTONOMY.pack((now_ms // COUNTED_SPAN_MS, *key)), number)


def take_back_task(unit: UnitOfWork, capability: str, row: NodeRecord) -> None:
    """Uncount a finished task in its hour's counter, because it is reset; nothing happens if it was not counted."""
    outcome = _OUTCOMES.get(row.state)
    if outcome is not None and row.finished_ms is not None and _counts(row):
        outcome += BY_HAND if row.by_hand else ""
        unit.tr.add(AUTONOMY.pack((row.finished_ms // COUNTED_SPAN_MS, TASK, capability, outcome)), -1)


def take_back_workflow(unit: UnitOfWork, workflow: str, run: RunRecord) -> None:
    """Uncount a reopened workflow in its hour's counter; nothing happens if it was canceled, or is a child."""
    head = unit.workflow(workflow)
    if run.finished_ms is not None and run.state is not WorkflowState.CANCELED and head and head.parent is None:
        outcome = _of_workflow(run.state, run.by_hand > 0)
        unit.tr.add(AUTONOMY.pack((run.finished_ms // COUNTED_SPAN_MS, WORKFLOW, "", outcome)), -1)


def note_hand(unit: UnitOfWork, workflow: str) -> None:
    """Count one action of a person ("by hand") for a workflow and, if it is a child, also for its root workflow."""
    head = unit.workflow(workflow)
    root = workflow if head is None or head.parent is None else head.parent.root
    for counted in dict.fromkeys((workflow, root)):
        if (run := unit.run(counted)) is not None:
            run.by_hand += 1


def read(tr: Reads, *, since_ms: int, until_ms: int) -> dict[tuple[str, str], Counter[str]]:
    """Return a period's counts of finished work by kind (task or workflow), capability and outcome, in whole hours."""
    found: dict[tuple[str, str], Counter[str]] = {}
    begin, end = AUTONOMY.pack((since_ms // COUNTED_SPAN_MS,)), AUTONOMY.pack((until_ms // COUNTED_SPAN_MS + 1,))
    for key, value in tr.get_range(begin, end):
        _, kind, name, outcome = AUTONOMY.unpack(key)
        found.setdefault((str(kind), str(name)), Counter())[str(outcome)] += read_counter(value)
    return found


def sweep(tr: Transaction, *, before_ms: int, limit: int = MOST_REMOVED) -> int:
    """Remove at most `limit` hourly counters of finished work from before an instant; return how many were removed."""
    rows = tr.snapshot.get_range(AUTONOMY.range()[0], AUTONOMY.pack((before_ms // COUNTED_SPAN_MS,)), limit=limit)
    for key, _ in rows:
        tr.clear(key)
    return len(rows)


def _counts(row: NodeRecord) -> bool:
    return bool(row.publication) or row.by_hand or row.reason in _DECIDED


def _of_workflow(state: WorkflowState, by_hand: bool) -> str:
    outcome = COMPLETED if state is WorkflowState.COMPLETED else FAILED
    return outcome + BY_HAND if by_hand else outcome
