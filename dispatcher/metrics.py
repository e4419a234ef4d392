"""The metrics of a dispatcher's shards, counted from the effects of each committed transaction."""

from __future__ import annotations

from coditect.telemetry.metrics import (
    CHECKPOINTS,
    NODE_SECONDS,
    OTHER,
    RESULTS_REFUSED,
    SCHEDULE_LATENESS,
    STORE_COMMIT_SECONDS,
    WORKFLOW_FAILURES,
    WORKFLOW_NAMED_SECONDS,
    WORKFLOW_SECONDS,
    WORKFLOW_STEPS,
    WORKFLOWS_ACCEPTED,
    Metrics,
)
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Effects, Transition

_FAILED = frozenset({WorkflowState.FAILED, WorkflowState.REJECTED, WorkflowState.COMPENSATION_FAILED})


class ShardMetrics:
    """The counters and histograms to which every shard of one dispatcher adds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
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
        metrics.histogram(WORKFLOW_NAMED_SECONDS, workflow=OTHER)
        metrics.histogram(NODE_SECONDS, node=OTHER)
        self._checkpoints = {
            "workflow.checkpoint": metrics.counter(CHECKPOINTS, action="made"),
            "workflow.restored": metrics.counter(CHECKPOINTS, action="restored"),
        }
        """The counters of checkpoints, by the event that says so."""
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
            self._metrics.histogram(WORKFLOW_NAMED_SECONDS, workflow=end.name).record(end.took_ms / 1000)
            self._failures.value += end.state in _FAILED
        for delay_ms in effects.tick_delays_ms:
            self._lateness.record(delay_ms / 1000)
        for notice in effects.notices:
            if (counter := self._checkpoints.get(notice.type)) is not None:
                counter.value += 1
        steps = self._steps
        for moved in effects.transitions:
            if moved.state in steps:
                steps[moved.state].value += 1
                self._note_node(moved)

    def _note_node(self, moved: Transition) -> None:
        """Add how long an ended node took, from when it was ready or began to wait; elements count as their map."""
        ready_ms, finished_ms = moved.row.ready_ms, moved.row.finished_ms
        if ready_ms is not None and finished_ms is not None:
            name = moved.node_key.defined.node
            self._metrics.histogram(NODE_SECONDS, node=name).record(max(0, finished_ms - ready_ms) / 1000)
