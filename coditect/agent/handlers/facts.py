"""The data of the running task that a handler's context shows, such as attempt, deadline and requester."""

from __future__ import annotations

from types import MappingProxyType

from coditect.agent.handlers.port import Services
from coditect.model.capability import Priority
from coditect.model.message import HeaderTable
from coditect.model.task import Task
from coditect.telemetry.tracing.port import CURRENT
from coditect.wire.headers.foreign import foreign_headers


class TaskFacts:
    """The read-only part of a handler's context, which describes the task, the present attempt and their limits."""

    _task: Task
    _headers: HeaderTable
    services: Services
    """The runtime's services for this execution."""

    @property
    def attempt(self) -> int:
        """The number of the present attempt at the task, from 1."""
        return self._task.attempt

    @property
    def fence(self) -> int:
        """A number that grows with every attempt, so that the receiver of an effect can refuse an older attempt.

        The number stays the same from the start of the execution to its end, also when the control plane grants the
        task again under a newer fence meanwhile. Another agent may have had the task in between: this execution may
        have read outdated data, so its effects must not count as newer than the other agent's.
        """
        return self._task.owner.fence if self._task.owner else self._task.redrive * 1_000_000 + self._task.attempt

    @property
    def capability(self) -> str:
        """The capability that the task asks for."""
        return self._task.capability

    @property
    def priority(self) -> Priority:
        """The priority at which the task was submitted."""
        return self._task.priority

    @property
    def deadline_ms(self) -> int | None:
        """The instant after which the result is worthless, in Unix milliseconds; None without a deadline."""
        return self._task.limits.deadline_ms

    @property
    def requester(self) -> str:
        """The name of the client or agent that waits for the result, or `workflow:<id>`; empty when none is known."""
        if self._task.owner is not None:
            return f"workflow:{self._task.owner.workflow}"
        return (self._task.reply_to or "").removeprefix("reply.")

    @property
    def trace(self) -> dict[str, str]:
        """The W3C trace headers that a call to another service sends, so that it belongs to the task's trace.

        Empty outside of any trace; the baggage is not among them, since it may be meant for the fleet alone.
        """
        place = CURRENT.get() or self._task
        headers = {"traceparent": place.traceparent, "tracestate": place.tracestate}
        return {name: text for name, text in headers.items() if text is not None}

    def seconds_left(self, most: float) -> float:
        """Return how many seconds an attempt that begins now may run: `most`, or less by the task's own limits."""
        timeout_ms, left = self._task.limits.timeout_ms, self._left_seconds()
        bounds = (most, None if timeout_ms is None else timeout_ms / 1000, left)
        return max(0.0, min(bound for bound in bounds if bound is not None))

    @property
    def headers(self) -> HeaderTable:
        """The headers that the publisher gave the task, the same at every attempt; empty for a workflow's node.

        Only texts of at most 4,096 characters, truth values and numbers, at most 16 KiB of them.
        """
        return MappingProxyType(foreign_headers(self._headers))

    @property
    def streamed(self) -> bool:
        """True when the requester takes the parts of a result one by one, as the handler yields them."""
        return self._task.stream > 0

    def _left_seconds(self) -> float | None:
        deadline_ms = self.deadline_ms
        return None if deadline_ms is None else (deadline_ms - self.services.now_ms()) / 1000
