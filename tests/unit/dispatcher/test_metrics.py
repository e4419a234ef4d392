"""What a dispatcher counts of a committed batch."""

from __future__ import annotations

import pytest

from coditect.telemetry.metrics import Histogram, MemoryMetrics, Value
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.effects import Effects, WorkflowEnd
from dispatcher.metrics import ShardMetrics


def told(metrics: MemoryMetrics, name: str, **labels: str) -> Value:
    return metrics.samples()[f"coditect_{name}", tuple(sorted(labels.items()))]


def seconds(metrics: MemoryMetrics, name: str, **labels: str) -> tuple[int, float]:
    value = told(metrics, name, **labels)
    assert isinstance(value, Histogram)
    return sum(value.counts), value.total


def test_ends_of_workflows_are_counted_by_state_and_failures_once_more() -> None:
    metrics = MemoryMetrics()
    effects = Effects(accepted=["w"], late=2, strange=1, tick_delays_ms=[250])
    effects.ended = [
        WorkflowEnd(WorkflowState.COMPLETED, 1_500),
        WorkflowEnd(WorkflowState.FAILED, 500),
        WorkflowEnd(WorkflowState.CANCELED, 100),
        WorkflowEnd(WorkflowState.COMPENSATED, 100),
    ]

    ShardMetrics(metrics).committed(effects, 0.004)

    assert seconds(metrics, "workflow_duration_seconds", state="completed") == (1, 1.5)
    assert seconds(metrics, "workflow_duration_seconds", state="failed") == (1, 0.5)
    assert told(metrics, "workflow_failures_total") == 1
    assert told(metrics, "workflows_accepted_total") == 1
    assert seconds(metrics, "store_commit_seconds") == (1, 0.004)
    assert seconds(metrics, "schedule_lateness_seconds") == (1, 0.25)
    assert told(metrics, "results_refused_total", reason="late") == 2
    assert told(metrics, "results_refused_total", reason="unknown") == 1


@pytest.mark.parametrize("state", [state for state in WorkflowState if state.terminal])
def test_every_end_of_a_workflow_has_its_histogram(state: WorkflowState) -> None:
    metrics = MemoryMetrics()

    ShardMetrics(metrics).committed(Effects(ended=[WorkflowEnd(state, 1_000)]), 0.0)

    assert seconds(metrics, "workflow_duration_seconds", state=state.value) == (1, 1.0)
