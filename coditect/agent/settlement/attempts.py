"""The metrics of an agent's attempts, by capability: how many, how long, how they ended, how long they waited."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coditect.agent.execution.handler import HandlerEnd
from coditect.model.task import Task
from coditect.telemetry.metrics import Counter, Histogram, Metrics
from coditect.telemetry.names import QUEUE_WAIT, TASK_ERRORS, TASK_REQUESTS, TASK_SECONDS, TASK_TIMEOUTS

TIMEOUT = "timeout"
"""The reason of the failure of an attempt that its time limit ended."""


@dataclass(frozen=True, slots=True)
class _Measured:
    seconds: Histogram
    errors: Counter
    timeouts: Counter
    waited: Histogram


class AttemptMetrics:
    """The counters and histograms of the capabilities of one agent process."""

    def __init__(self, metrics: Metrics, capabilities: Iterable[str]) -> None:
        self._measured = {
            name: _Measured(
                metrics.histogram(TASK_SECONDS, capability=name),
                metrics.counter(TASK_ERRORS, capability=name),
                metrics.counter(TASK_TIMEOUTS, capability=name),
                metrics.histogram(QUEUE_WAIT, capability=name),
            )
            for name in capabilities
        }
        for name, one in self._measured.items():
            metrics.observe(TASK_REQUESTS, one.seconds.number, capability=name)

    def ended(self, task: Task, ended: HandlerEnd, started_ms: int, ran_seconds: float) -> None:
        """Count one attempt that began at `started_ms`, and ran for so many seconds."""
        measured = self._measured[task.capability]
        measured.seconds.record(ran_seconds)
        if task.attempt == 1 and task.published_at_ms is not None:
            measured.waited.record(max(0, started_ms - task.published_at_ms) / 1000)
        if ended.failure is not None:
            measured.errors.value += 1
            measured.timeouts.value += ended.failure.reason == TIMEOUT
