"""The metrics of an agent's attempts by capability, and recent outcomes of tasks for which senders picked the agent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandlerEnd
from coditect.model.recent import RecentOutcomes, TaskKind, task_kind, unknown
from coditect.model.result import Status
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
    """The metrics of an agent's attempts, by capability, and recent outcomes of tasks that senders picked it for."""

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
        self._recent: dict[TaskKind, tuple[RecentOutcomes, int]] = {}
        """The recent outcomes by kind of task, with the time of the last in milliseconds."""

    def recent(self, now_ms: int) -> tuple[RecentOutcomes, ...]:
        """Return the recent outcomes of the tasks that senders picked this agent for, by capability and input size."""
        return tuple(outcomes.faded(max(0, now_ms - last_ms) / 1000) for outcomes, last_ms in self._recent.values())

    def ended(self, execution: Execution, ended: HandlerEnd, started_ms: int, ran_seconds: float) -> None:
        """Record one ended attempt in the metrics: its run time, its failure, and at attempt 1 its wait in the queue.

        The attempt began at `started_ms`, and ran for `ran_seconds`. If the sender picked this agent for the task, the
        end counts among the recent outcomes. A task that another agent has accepted counts as run, and as no failure.
        """
        task = execution.task
        if execution.picked:
            self._learn(task, ended, started_ms, ran_seconds)
        measured = self._measured[task.capability]
        measured.seconds.record(ran_seconds)
        if task.attempt == 1 and task.published_at_ms is not None:
            measured.waited.record(max(0, started_ms - task.published_at_ms) / 1000)
        if ended.failure is not None and not execution.handed_off:
            measured.errors.value += 1
            measured.timeouts.value += ended.failure.reason == TIMEOUT

    def _learn(self, task: Task, ended: HandlerEnd, started_ms: int, ran_seconds: float) -> None:
        """Add an attempt to the recent outcomes, unless it was canceled or refused, which is not the agent's doing."""
        if ended.status is Status.COMPLETED or ended.status is Status.FAILED:
            kind = task_kind(task.capability, None if task.claims else len(task.body))
            ran_ms, completed = ran_seconds * 1000, ended.status is Status.COMPLETED
            now_ms = started_ms + round(ran_ms)
            outcomes, last_ms = self._recent.get(kind, (unknown(kind), now_ms))
            outcomes = outcomes.faded(max(0, now_ms - last_ms) / 1000)
            self._recent[kind] = outcomes.after(ran_ms, completed=completed), now_ms
