"""How long handlers may run. What ends soon after its start, as most does, never gets a timer."""

from __future__ import annotations

import asyncio

from coditect.agent.execution import Execution

LOOK_SECONDS = 0.1
"""From one look at what has started meanwhile to the next; a shorter limit gets its timer at once."""


class TimeLimits:
    """Expires executions when their time is over, to the moment.

    A timer costs more than what many a handler does. So an execution only gets its own when it still runs at
    the next look.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = loop.time
        self._fresh: dict[Execution, float] = {}
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._look: asyncio.TimerHandle | None = None

    def begin(self, execution: Execution, seconds: float) -> None:
        """It may run so long from now."""
        if seconds <= LOOK_SECONDS:
            self._timers[execution] = self._loop.call_later(seconds, execution.expire)
            return
        self._fresh[execution] = self._now() + seconds
        if self._look is None:
            self._look = self._loop.call_later(LOOK_SECONDS, self._give_timers)

    def end(self, execution: Execution) -> None:
        """It runs no more."""
        if self._fresh.pop(execution, None) is None:
            timer = self._timers.pop(execution, None)
            if timer is not None:
                timer.cancel()

    def _give_timers(self) -> None:
        self._look = None
        for execution, due in self._fresh.items():
            self._timers[execution] = self._loop.call_at(due, execution.expire)
        self._fresh.clear()
