"""A watchdog that ends a program whose event loop is blocked, and logs the line that blocks the loop.

A handler that blocks (`time.sleep` in an `async def`) stops everything that its process does: heartbeats, other tasks,
signals. A thread therefore checks that the loop still turns. The thread warns after a fifth of the bound with the stack
of the loop's thread, and ends the process at the bound: the broker gives the tasks to other agents, and the program's
parent, supervisor or orchestrator starts the program again. Time in which the process itself did not run (a stopped
process, a busy machine) does not count.

A call into C that never releases the interpreter's lock (a regular expression that backtracks for ever) stops that
thread, too. Python's `faulthandler` writes the stacks and ends the process then, after three
to four times the bound.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

STALLED_EXIT_CODE = 70
"""The exit code of a process that the watchdog ends: EX_SOFTWARE of sysexits.h."""
LOOKS = 20
"""How many times the watchdog checks the event loop within its bound."""
LOOKS_TO_WARNING = LOOKS // 5
BETWEEN_WARNINGS_SECONDS = 60.0
LOG_SECONDS = 2.0
"""How long the last log line may take: code that blocks the loop may block the log, too."""
_FIX = "declare the handler as a plain function (def): it gets a thread; or await asyncio.to_thread(...) what blocks"


@contextmanager
def watched_loop(bound_seconds: float, *, lag: Callable[[float], object] = lambda _: None) -> Iterator[None]:
    """Watch the running event loop inside the block, and end the process when the loop is blocked beyond the bound.

    A bound of 0 watches nothing, for a debugger that stops in a handler. `lag` is called on the loop, twenty times in
    each bound, with the seconds by which the loop was late.
    """
    if not bound_seconds:
        yield
        return
    watchdog = LoopWatchdog(asyncio.get_running_loop(), bound_seconds, lag=lag)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


class LoopWatchdog:
    """A thread that watches an event loop, and logs and ends the process when the loop is blocked for too long.

    It is constructed in the loop's thread. `end` is called with the exit code, from the watching thread. `last_resort`
    arms `faulthandler`, of which a process has one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        bound_seconds: float,
        *,
        end: Callable[[int], object] = os._exit,
        last_resort: bool = True,
        lag: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._lag = lag
        self._last_resort = last_resort
        self._bound_seconds = bound_seconds
        self._pause_seconds = bound_seconds / LOOKS
        self._end = end
        self._turns = 0
        self._next_turn: asyncio.TimerHandle | None = None
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._warned_at = -BETWEEN_WARNINGS_SECONDS
        self._armed_at = -math.inf
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread that watches the event loop."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Stop the watching thread, and wait for its end."""
        self._stopped.set()
        self._thread.join()
        if self._next_turn is not None:
            self._next_turn.cancel()

    def _turn(self) -> None:
        self._turns += 1
        if self._next_turn is not None:
            self._lag(max(0.0, self._loop.time() - self._next_turn.when()))
        self._next_turn = self._loop.call_later(self._pause_seconds, self._turn)

    def _watch(self) -> None:
        """Check at intervals that the event loop runs callbacks; warn, and later end the process, when it is blocked.

        Each look counts once, however long ago the last look was: a process that did not run saw nothing.
        """
        seen, looks = 0, 0
        try:
            while not self._stopped.wait(self._pause_seconds):
                self._arm_last_resort()
                looks = 0 if self._turns != seen else looks + 1
                seen = self._turns
                if looks == LOOKS_TO_WARNING:
                    self._warn()
                elif looks >= LOOKS:
                    self._end_process()
                    return
        finally:
            if self._last_resort:
                faulthandler.cancel_dump_traceback_later()

    def _arm_last_resort(self) -> None:
        """Restart the `faulthandler` timer that ends a hung process; seldom, since each restart makes a thread."""
        now = time.monotonic()
        if self._last_resort and sys.__stderr__ is not None and now - self._armed_at >= self._bound_seconds:
            self._armed_at = now
            faulthandler.dump_traceback_later(4 * self._bound_seconds, exit=True, file=sys.__stderr__)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= BETWEEN_WARNINGS_SECONDS:
            self._warned_at = now
            log.warning("The event loop does not turn: something blocks it", extra=self._facts(LOOKS_TO_WARNING))

    def _end_process(self) -> None:
        timer = threading.Timer(LOG_SECONDS, self._end, (STALLED_EXIT_CODE,))
        timer.daemon = True
        timer.start()
        log.error("The event loop stood still for too long: this process ends", extra=self._facts(LOOKS))
        timer.cancel()
        self._end(STALLED_EXIT_CODE)

    def _facts(self, looks: int) -> dict[str, object]:
        frame = sys._current_frames().get(self._watched)  # the documented way to another thread's stack
        stack = [] if frame is None else traceback.extract_stack(frame)
        return {
            "stood_still_seconds": round(looks * self._pause_seconds, 1),
            "at": f"{stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}" if stack else "",
            "stack": "".join(traceback.format_list(stack)),
            "fix": _FIX,
        }
