"""The time limits of handlers; a handler that ends soon after its start, as most do, never gets a timer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from coditect.agent.execution.execution import Execution

LOOK_SECONDS = 0.1
"""Pause between two checks for executions that need a timer; a shorter limit gets its timer at once."""


@dataclass(frozen=True, slots=True)
class _Pause:
    left: float
    bound: asyncio.TimerHandle
    """The timer of the task's total time, in which its waits count."""


class TimeLimits:
    """The time limits of the running executions; each execution expires exactly when its time is over.

    A timer costs more than the whole work of many handlers. So an execution gets a timer only when it still runs at the
    next check. While an execution awaits other tasks, or a slot to go on with, its time stands still.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = loop.time
        self._fresh: dict[Execution, float] = {}
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._paused: dict[Execution, _Pause] = {}
        self._look: asyncio.TimerHandle | None = None

    def begin(self, execution: Execution, seconds: float) -> None:
        """Start the time limit of an execution: the handler is canceled `seconds` from now."""
        if seconds <= LOOK_SECONDS:
            self._timers[execution] = self._loop.call_later(seconds, execution.expire)
            return
        self._fresh[execution] = self._now() + seconds
        if self._look is None:
            self._look = self._loop.call_later(LOOK_SECONDS, self._give_timers)

    def end(self, execution: Execution) -> None:
        """Remove the time limit of an execution; without effect when it has none."""
        if self._fresh.pop(execution, None) is None:
            timer = self._timers.pop(execution, None)
            if timer is not None:
                timer.cancel()
            elif (pause := self._paused.pop(execution, None)) is not None:
                pause.bound.cancel()

    def pause(self, execution: Execution, most_seconds: float) -> None:
        """Pause an execution's time limit until `go_on`; cancel the handler after `most_seconds` anyway. Idempotent."""
        due, timer = self._fresh.pop(execution, None), self._timers.get(execution)
        if due is None:
            if timer is None or execution.asked_to_end:
                return
            due = timer.when()
            self.end(execution)
        now = self._now()
        self._paused[execution] = _Pause(due - now, self._loop.call_at(now + most_seconds, execution.expire_by_clock))

    def go_on(self, execution: Execution) -> None:
        """Resume the paused time limit of an execution; without effect when it is not paused."""
        pause = self._paused.get(execution)
        if pause is not None and not execution.asked_to_end:
            self.end(execution)
            self.begin(execution, min(pause.left, pause.bound.when() - self._now()))

    def _give_timers(self) -> None:
        self._look = None
        for execution, due in self._fresh.items():
            self._timers[execution] = self._loop.call_at(due, execution.expire)
        self._fresh.clear()
