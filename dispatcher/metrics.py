"""The metrics of a dispatcher's shards, counted from the effects of each committed transaction."""

from __future__ import annotations

from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import (
    RESULTS_REFUSED,
    SCHEDULE_LATENESS,
    STORE_COMMIT_SECONDS,
    WORKFLOW_FAILURES,
    WORKFLOW_SECONDS,
    WORKFLOW_STEPS,
    WORKFLOWS_ACCEPTED,
)
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Effects

_FAILED = frozenset({WorkflowState.FAILED, WorkflowState.REJECTED, WorkflowState.COMPENSATION_FAILED})


class ShardMetrics:
    """The counters and histograms to which every shard of one dispatcher adds."""

    def __init__(self, metrics: Metrics) -> None:
        self._commits = metrics.histogram(STORE_COMMIT_SECONDS)
        self._late = metrics.counter(RESULTS_REFUSED, reason="late")
        self._strange = metrics.counter(RESULTS_REFUSED, reason="unknown")
        self._accepted = metrics.counter(WORKFLOWS_ACCEPTED)
        self._failures = metrics.counter(WORKFLOW_FAILURES)
        self._lateness = metrics.histogram(SCHEDULE_LATENESS)
        self._ends = {
            WorkflowState(state): metrics.histogram(WORKFLOW_SECONDS, state=state)
            for state in WORKFLOW_SECONDS.labels["state"]
        }
        self._steps = {
            TaskState(state): metrics.counter(WORKFLOW_STEPS, state=state) for state in WORKFLOW_STEPS.labels["state"]
        }

    def committed(self, effects: Effects, took_seconds: float) -> None:
        """Add a committed transaction's effects, such as ended workflows, and its duration to the metrics."""
        self._commits.record(took_seconds)
        self._late.value += effects.late
        self._strange.value += effects.strange
        self._accepted.value += len(effects.accepted)
        for end in effects.ended:
            self._ends[end.state].record(end.took_ms / 1000)
            self._failures.value += end.state in _FAILED
        for delay_ms in effects.tick_delays_ms:
            self._lateness.record(delay_ms / 1000)
        steps = self._steps
        for moved in effects.transitions:
            if moved.state in steps:
                steps[moved.state].value += 1
