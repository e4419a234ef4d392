"""The place of a node in RQ: one registry or queue for every state of the ledger."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.taskgraph.port import JobState

_PLACES = {
    TaskState.BLOCKED: JobState.DEFERRED,
    TaskState.READY: JobState.QUEUED,
    TaskState.PUBLISHED: JobState.STARTED,
    TaskState.WORKING: JobState.STARTED,
    TaskState.RETRY_WAIT: JobState.SCHEDULED,
    TaskState.AWAITING_APPROVAL: JobState.SCHEDULED,
    TaskState.COMPLETED: JobState.FINISHED,
    TaskState.FAILED: JobState.FAILED,
    TaskState.CANCELED: JobState.CANCELED,
    TaskState.REJECTED: JobState.FAILED,
    TaskState.SKIPPED: JobState.CANCELED,
    TaskState.DEAD: JobState.FAILED,
}


def job_state(state: TaskState) -> JobState:
    """Return the state of RQ's job for a node in the given state."""
    return _PLACES[state]
