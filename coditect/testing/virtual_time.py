"""Virtual time for an event loop: time stands still while callbacks are ready, else jumps to the next timer.

The loop asks its selector to wait until the next timer; here the wait does not happen, and its length is added to the
time. Real events outside of the loop keep their place: while a plain handler runs in a thread, time stands still; while
a socket is open, time moves in small steps only.

An idle fleet still sends heartbeats, and checks the tasks that run. When nothing else has happened for a while, nothing
else will before the next timer that belongs to neither. Then the time *skips* there, and the idle timers, with the
leases that they would have renewed, move along: two days cost as much as two seconds.

`Schedule` runs the callbacks of simulated processes on the loop, in an order that the seed decides. A context variable
names the process that a task, callback or timer belongs to; each inherits the variable from the code that started it.
Within a process everything runs in asyncio's order. Between processes, which in reality share nothing but the network,
the seed decides. A process can also stand still.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any
from uuid import UUID

from coditect.agent.intake import CREDIT_CHECK_SECONDS, Intake
from coditect.aio.supervisor import is_idle
from coditect.aio.threads import waits_for_loop
from coditect.errors import SetupError
from coditect.model.ids import TaskId

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
            waiting = {id(timer) for timer in self._scheduled}
            self._idle = {key: timer for key, timer in self._idle.items() if key in waiting}
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
            for future in settling:
                if not future.done():
                    future.set_result(None)
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
            others = [
                timer.when() for timer in self._scheduled if not timer.cancelled() and id(timer) not in self._idle
            ]
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


class SeededClock:
    """A `coditect.aio.clock.Clock` whose random numbers and ids are the same for the same seed and virtual times."""

    def __init__(self, epoch_ms: int, elapsed: Callable[[], float], random: Random) -> None:
        """Make a clock that begins at `epoch_ms`; `elapsed` returns the virtual seconds since then."""
        self._epoch_ms = epoch_ms
        self._elapsed = elapsed
        self._random = random
        self._last = 0

    def now_ms(self) -> int:
        """Return the virtual wall time in milliseconds since the Unix epoch."""
        return self._epoch_ms + round(self._elapsed() * 1000)

    def chance(self) -> float:
        """Return a random number in [0, 1)."""
        return self._random.random()

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7, greater than every earlier one from the same clock."""
        self._last = max(self._last + 1, self.now_ms() << 12)  # 48 bits of time, 12 that count
        moment, count = self._last >> 12, self._last & 0xFFF
        tail = (0b10 << 62) | self._random.getrandbits(62)
        return TaskId(str(UUID(int=(moment << 80) | (7 << 76) | (count << 64) | tail)))


_OWNER: ContextVar[Actor | None] = ContextVar("coditect_testing_owner", default=None)


class Actor:
    """The scheduler's record of a simulated process: its asyncio tasks, ready callbacks, and whether it is stopped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False
        self.ready: deque[tuple[asyncio.Handle, asyncio.Handle]] = deque()
        """The callbacks that are ready to run, in order, each with the handle that may cancel it."""
        self.tasks: list[asyncio.Task[Any]] = []
        """The process's asyncio tasks: all that are not done, and finished ones that were not removed yet."""
        self._most_tasks = 64

    def context(self) -> Context:
        """Return a fresh `contextvars` context; code run in it, and all that it starts, belongs to the process."""
        context = copy_context()
        context.run(_OWNER.set, self)
        return context

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keep a reference to a task of the process, so that a task that never ends is not garbage-collected."""
        if len(self.tasks) >= self._most_tasks:
            self.tasks = [task for task in self.tasks if not task.done()]
            self._most_tasks = 2 * len(self.tasks) + 64
        self.tasks.append(task)


def _owner(context: Context | None) -> Actor | None:
    return _OWNER.get() if context is None else context.get(_OWNER)


class Schedule:
    """The seeded order between simulated processes' callbacks, in place of the loop's, between `open` and `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, virtual_clock: VirtualClock, random: Random) -> None:
        self._loop = loop
        self._virtual_clock = virtual_clock
        self._random = random
        self._real_soon = loop.call_soon
        self._real_at = loop.call_at
        self._real_create = loop.create_task
        self._real_executor = loop.run_in_executor
        self._runnable: list[Actor] = []
        self._turning = False

    def open(self) -> None:
        """Replace the loop's methods, so that the callbacks of simulated processes run in the seeded order."""
        vars(self._loop).update(
            call_soon=self._soon, call_at=self._at, create_task=self._create, run_in_executor=self._execute
        )

    def close(self) -> None:
        """Give the event loop its own methods back; stopped processes never run again."""
        for name in ("call_soon", "call_at", "create_task", "run_in_executor"):
            del vars(self._loop)[name]

    def stop(self, actor: Actor) -> None:
        """Stop a process: none of its callbacks runs until `go_on`."""
        actor.stopped = True
        if actor in self._runnable:
            self._runnable.remove(actor)

    def go_on(self, actor: Actor) -> None:
        """Let a stopped process continue; timers that passed meanwhile fire at once."""
        actor.stopped = False
        self._wake(actor)

    # -- in place of the loop's own ---------------------------------------------------------------------

    def _soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        actor = _owner(context)
        if actor is None:
            self._virtual_clock.heard = max(self._virtual_clock.heard, self._virtual_clock.now)
            return self._real_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self._loop, context)
        self._enqueue(actor, handle, handle)
        return handle

    def _at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        actor = _owner(context)
        if actor is None:
            timer = self._real_at(when, callback, *args, context=context)
        else:
            handle = asyncio.Handle(callback, args, self._loop, context)
            timer = self._real_at(when, lambda: self._enqueue(actor, handle, timer))
        self._virtual_clock.set(timer, idle=self._is_idle(actor, when, callback))
        return timer

    def _is_idle(self, actor: Actor | None, when: float, callback: Callable[..., Any]) -> bool:
        """Tell whether a timer serves repeated routine work, such as heartbeats, that virtual time may skip."""
        if actor is None:
            return False
        if isinstance(getattr(callback, "__self__", None), Intake):
            return when - self._virtual_clock.now < 2 * CREDIT_CHECK_SECONDS
        task = asyncio.current_task(self._loop)
        return task is not None and is_idle(task)

    def _create(self, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = self._real_create(coroutine, **options)
        actor = _owner(options.get("context"))
        if actor is not None:
            actor.add(task)
        return task

    def _execute(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        job = self._real_executor(executor, function, *args)
        actor = _owner(None)
        self._virtual_clock.jobs.add(job, lambda: not (waits_for_loop(job) or (actor is not None and actor.stopped)))
        return job

    # -- turns ------------------------------------------------------------------------------------------

    def _enqueue(self, actor: Actor, handle: asyncio.Handle, guard: asyncio.Handle) -> None:
        actor.ready.append((handle, guard))
        self._wake(actor)

    def _wake(self, actor: Actor) -> None:
        if actor.ready and not actor.stopped and actor not in self._runnable:
            self._runnable.append(actor)
        self._rouse()

    def _rouse(self) -> None:
        if self._runnable and not self._turning:
            self._turning = True
            self._real_soon(self._turn, context=Context())

    def _turn(self) -> None:
        """Run as many callbacks as are ready now, one at a time, each of a process that the seed picks at random."""
        self._turning = False
        for _ in range(sum(len(actor.ready) for actor in self._runnable)):
            if not self._runnable:
                break
            number = self._random.randrange(len(self._runnable))
            actor = self._runnable[number]
            handle, guard = actor.ready.popleft()
            if not actor.ready:
                del self._runnable[number]
            if not guard.cancelled():
                handle._run()
        self._rouse()
