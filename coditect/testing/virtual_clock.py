"""Virtual time for an event loop: time stands still while callbacks are ready, else jumps to the next timer.

The loop asks its selector to wait until the next timer; here the wait does not happen, and its length is added to the
time. Real events outside of the loop keep their place: while a plain handler runs in a thread, time stands still; while
a socket is open, time moves in small steps only.

An idle fleet still sends heartbeats, and checks the tasks that run. When nothing else has happened for a while, nothing
else will before the next timer that belongs to neither. Then the time *skips* there, and the idle timers, with the
leases that they would have renewed, move along: two days cost as much as two seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Any

from coditect.errors import SetupError

STEADY_BEATS = 2
"""Number of heartbeats in which nothing else must have happened before time skips ahead."""
IO_SECONDS = 0.02
"""How long an open socket or pipe is waited for, in real time, before each step of virtual time."""
LAST_CHANCE_SECONDS = 0.25
"""How long, in real time, sockets are waited for before the fleet counts as stuck."""
LONGEST_SELECT_SECONDS = 24 * 3600.0
"""The longest wait of asyncio itself, which cuts longer ones."""
ROUNDING_SECONDS = 1e-9
RESOLUTION_SECONDS = 1e-8
"""The amount that asyncio adds to the time to see which timers are due.

Its own nanosecond is lost in a float after three months: no timer would ever be due again.
"""
_MOST_IDLE = 1_000


class Jobs:
    """The calls that run in threads, each with its real start time, for which virtual time may have to wait."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Future[Any], tuple[float, Callable[[], bool]]] = {}

    def add(self, job: asyncio.Future[Any], counts: Callable[[], bool]) -> None:
        """Add a call that was given to a thread; `counts` tells whether virtual time still has to wait for it."""
        self._since[job] = (time.monotonic(), counts)

    def last_start(self) -> float | None:
        """Return the latest start (monotonic clock) of the calls that still hold virtual time up; None without any."""
        self._since = {job: since for job, since in self._since.items() if not job.done()}
        return max((since for since, counts in self._since.values() if counts()), default=None)


class VirtualClock:
    """The virtual time of one loop, from `open` to `close`; it starts at 0."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        beat_seconds: float,
        stuck_after_seconds: float,
        patience_seconds: float,
        skipped: Callable[[float], None],
        stuck: Callable[[str], None],
    ) -> None:
        """Create a clock for `loop`; it calls `skipped` with skipped seconds, `stuck` with why a test waits in vain."""
        self.now = 0.0
        """The virtual seconds since the clock was opened."""
        self.heard = 0.0
        """The virtual instant at which the test itself last did something, or will do something."""
        self.jobs = Jobs()
        self._loop = loop
        self._beat_seconds = beat_seconds
        self._stuck_after_seconds = stuck_after_seconds
        self._patience_seconds = patience_seconds
        self._skipped = skipped
        self._stuck = stuck
        self._idle: dict[int, asyncio.TimerHandle] = {}
        self._stirred = 0.0
        self._settling: list[asyncio.Future[None]] = []
        self._own = vars(loop)
        self._selector = self._own["_selector"]
        self._files = 0

    # -- the loop ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the loop's time virtual; pending timers keep their remaining time."""
        self._move_timers(self.now - self._loop.time())
        self._files = len(self._selector.get_map())
        self._real_select = self._selector.select
        self._own["time"] = lambda: self.now
        self._real_resolution = self._own["_clock_resolution"]
        self._own["_clock_resolution"] = RESOLUTION_SECONDS
        vars(self._selector)["select"] = self._select

    def close(self) -> None:
        """Make the loop's time real again; pending timers keep their remaining time."""
        del self._own["time"]
        self._own["_clock_resolution"] = self._real_resolution
        del vars(self._selector)["select"]
        self._move_timers(self._loop.time() - self.now)

    @property
    def _scheduled(self) -> list[asyncio.TimerHandle]:
        timers: list[asyncio.TimerHandle] = self._own["_scheduled"]
        return timers

    def _move_timers(self, seconds: float, *, idle_only: bool = False) -> None:
        for timer in self._scheduled:
            if not idle_only or id(timer) in self._idle:
                timer._when = timer.when() + seconds  # type: ignore[attr-defined]
        heapq.heapify(self._scheduled)

    # -- what others tell -------------------------------------------------------------------------------

    def set(self, timer: asyncio.TimerHandle, *, idle: bool) -> None:
        """Note a new timer of the loop; an `idle` one, for routine work, is put off when virtual time skips ahead."""
        if self.now < timer.when() <= self.now + RESOLUTION_SECONDS:
            self.now = timer.when()  # due already, to asyncio: who waits for a rest in a loop would do so for ever
        if not idle:
            self._stirred = self.now
            return
        if len(self._idle) >= _MOST_IDLE:
            waiting = {id(one) for one in self._scheduled}
            self._idle = {key: one for key, one in self._idle.items() if key in waiting}
        self._idle[id(timer)] = timer

    async def settled(self) -> None:
        """Wait until no callback is left to run at the present virtual time, which does not pass meanwhile."""
        settled: asyncio.Future[None] = self._loop.create_future()
        self._settling.append(settled)
        await settled

    # -- the passing of time ----------------------------------------------------------------------------

    def _select(self, timeout: float | None = None) -> list[Any]:
        """Return ready I/O events, as `select` does; if there are none, end waits of `settled`, or move time ahead."""
        events: list[Any] = self._real_select(0)
        if events or timeout == 0:
            return events
        events = self._outside()
        if events:
            return events
        if self._settling:
            settling, self._settling = self._settling, []
            for one in settling:
                if not one.done():
                    one.set_result(None)
        elif timeout is None:
            return self._in_vain("Nothing runs, and nothing waits for time")
        else:
            return self._jump(timeout)
        return []

    def _outside(self) -> list[Any]:
        """Wait a limited real time for calls in threads, and for I/O if sockets are open; return the I/O events."""
        events: list[Any] = []
        if (since := self.jobs.last_start()) is not None:
            left = since + self._stuck_after_seconds - time.monotonic()
            if left > 0:
                return list(self._real_select(left)) or self._outside()
        if len(self._selector.get_map()) > self._files:
            events = self._real_select(IO_SECONDS)
        return events

    def _jump(self, timeout: float) -> list[Any]:
        first = self._scheduled[0]
        if self.now - self.heard > self._patience_seconds:
            return self._in_vain("What the test waits for did not come within the patience of the fleet")
        if id(first) not in self._idle:
            self._stirred = _snapped(first.when())
        elif self.now - self._stirred >= STEADY_BEATS * self._beat_seconds:
            others = [one.when() for one in self._scheduled if not one.cancelled() and id(one) not in self._idle]
            if not others:
                return self._in_vain("Nothing runs, and only heartbeats wait for time")
            if self._skip(min(others)):
                return []
        self.now = _snapped(first.when()) if timeout < LONGEST_SELECT_SECONDS else self.now + timeout
        return []

    def _skip(self, to: float) -> bool:
        """Move time and routine timers ahead by whole heartbeat periods, at most to `to`; False if `to` is too near."""
        seconds = (to - self.now) // self._beat_seconds * self._beat_seconds
        if seconds < self._beat_seconds:
            return False
        self._move_timers(seconds, idle_only=True)
        self.now += seconds
        self._skipped(seconds)
        return True

    def _in_vain(self, why: str) -> list[Any]:
        events: list[Any] = self._real_select(LAST_CHANCE_SECONDS)
        if not events:
            self.heard = self.now
            self._stuck(why)
        return events


def _snapped(instant: float) -> float:
    """Return the instant rounded to a microsecond if that changes only a floating-point error; else the instant.

    The loop itself rounds by as much.
    """
    whole = round(instant, 6)
    return whole if abs(whole - instant) < ROUNDING_SECONDS else instant


def virtual_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop, after a check that its time can be made virtual.

    Raises:
        SetupError: when it cannot, or is virtual already; the error says what to do.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise SetupError(
            "The time of this event loop cannot be made virtual",
            loop=f"{type(loop).__module__}.{type(loop).__name__}",
            fix="run the test on asyncio's own SelectorEventLoop: without uvloop's event loop policy, "
            "and on Windows with asyncio.WindowsSelectorEventLoopPolicy",
        )
    if "time" in vars(loop):
        raise SetupError(
            "The time of this event loop is virtual already",
            fix="run one TestFleet at a time on a loop, and no other library that fakes its time",
        )
    return loop
