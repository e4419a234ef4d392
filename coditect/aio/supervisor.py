"""A supervisor of background tasks: some tasks run once, others are endless loops, restarted after each death.

A loop without an end dies by an error, by a cancellation that its owner did not ask for, and by returning. The
supervisor logs each death, counts the death in `Health`, and starts the loop again after a pause that grows. While a
*critical* loop is down the process is not ready; a critical loop that dies `RestartLimits.most_deaths` times in a row
ends the process, by `Health.failure`. An *optional* loop is started again for as long as the process lives.

Python 3.11's `wait_for`, which aiormq and redis-py use, drops a cancellation that arrives together with the awaited
result. An endless loop over such calls would then never end, and the code that canceled the loop would wait for ever.
So the adapters make their calls within `heeded`.

The idea is that of the supervisors of Erlang/OTP: https://www.erlang.org/doc/system/sup_princ.html
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Self
from weakref import WeakSet

from coditect.errors import CoditectError

log = logging.getLogger(__name__)


def cancellations() -> int:
    """Return how many cancellations of the current asyncio task are pending; 0 outside of an asyncio task."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@contextmanager
def heeded() -> Iterator[None]:
    """Raise, at the end of the block, any cancellation that arrived within the block.

    A library inside the block may have swallowed the cancellation.

    Raises:
        CancelledError: when the task was canceled within the block.
    """
    before = cancellations()
    try:
        yield
    finally:
        if cancellations() > before:
            raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class Backoff:
    """An exponential backoff with a first and a longest pause, in seconds, and without jitter of its own."""

    first: float
    longest: float

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after the given number of failures in a row, 1 or more."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 40))

    def pauses(self) -> Iterator[float]:
        """Yield without end the seconds to wait after the first failure, the second, and so on."""
        return map(self.pause, count(1))


STEP_SECONDS = 0.1
"""The time between two checks, during a restart pause, that the loop is still wanted."""

_IDLE: WeakSet[asyncio.Task[Any]] = WeakSet()


class LoopDied(CoditectError):
    """The error of a supervised endless loop that ended although its owner did not end it."""


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """The policy for loops that die: the pause before a restart, and the number of deaths that ends the process."""

    first_pause_seconds: float = 0.1
    """The pause before a loop's first restart; each death in a row doubles the pause."""
    longest_pause_seconds: float = 30.0
    most_deaths: int = 8
    """How many deaths in a row of one critical loop end the process: 13 s of pauses, by the defaults."""
    healthy_seconds: float = 60.0
    """After a run of this length, the next death of a loop counts from 1 again."""
    proven_seconds: float = 1.0
    """A loop that was started again counts as down until it has run for this long."""


@dataclass(slots=True, eq=False)
class _KeptLoop:
    """An endless loop that a supervisor keeps alive, with its count of deaths."""

    name: str
    work: Callable[[], Coroutine[Any, Any, object]]
    critical: bool
    is_over: Callable[[], bool]
    limits: RestartLimits
    task: asyncio.Task[None] | None = None
    began: float = 0.0
    deaths_in_a_row: int = 0
    paused: bool = False
    error: str = ""

    def is_down(self, now: float) -> bool:
        """Tell whether the loop waits for its restart, or was restarted less than `proven_seconds` (1 s) ago."""
        return self.paused or (self.deaths_in_a_row > 0 and now - self.began < self.limits.proven_seconds)


class Health:
    """The health of one process: which endless loops are down, how often each died, and whether one died too often."""

    def __init__(self) -> None:
        self.deaths: Counter[str] = Counter()
        """How often each loop has died, by name."""
        self._kept: dict[_KeptLoop, None] = {}
        self._failure: CoditectError | None = None
        self._failed = asyncio.Event()

    def why_not(self) -> str:
        """Return the name of a critical loop that is down, with the reason; empty when all critical loops run."""
        now = asyncio.get_running_loop().time()
        for kept in self._kept:
            if kept.critical and kept.is_down(now):
                return f"the loop {kept.name!r} died {kept.deaths_in_a_row} times in a row, by {kept.error}"
        return ""

    async def failure(self) -> CoditectError:
        """Wait for an error that should end the process, such as a critical loop that died too often, and return it."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    def fail(self, error: CoditectError) -> None:
        """End the process because of an error, so that it is started again; a later error changes nothing."""
        self._failure = self._failure or error
        self._failed.set()

    def _note(self, kept: _KeptLoop, error: Exception) -> None:
        self.deaths[kept.name] += 1
        if kept.critical and kept.deaths_in_a_row >= kept.limits.most_deaths:
            died = LoopDied(
                "A loop that the process needs died again and again",
                loop=kept.name,
                deaths=kept.deaths_in_a_row,
                reason=repr(error),
                fix="start the process again; the log has the loop's errors",
            )
            self.fail(died)


class Supervisor:
    """An owner of background tasks: restarts endless loops, and cancels and awaits every task at the end.

    Unlike `asyncio.TaskGroup`, a crash of a task does not cancel the owner's body: an agent goes on serving when, say,
    its event publisher failed. Leaving the context waits for every task.
    """

    def __init__(self, health: Health | None = None, *, limits: RestartLimits | None = None) -> None:
        """Create a supervisor that reports to `health`, which a process's supervisors share; None makes a new one."""
        self.health = Health() if health is None else health
        self._limits = limits or RestartLimits()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """The tasks in the order of their starts, in which `close` cancels them; a set has an order of its own."""

    def start(self, work: Coroutine[Any, Any, Any], *, name: str, awaited: bool = False) -> asyncio.Task[Any]:
        """Run the coroutine once in an asyncio task; log its crash, unless the caller awaits the task (`awaited`)."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop if awaited else self._ended)
        return task

    def keep(
        self,
        work: Callable[[], Coroutine[Any, Any, object]],
        *,
        name: str,
        critical: bool,
        idle: bool = False,
        until: Callable[[], bool] = lambda: False,
    ) -> asyncio.Task[None]:
        """Run an endless loop in the background; after an error, a return or a stray cancellation, start it again.

        `work` is called for each life of the loop, and continues from the state that the previous life left behind. A
        return is no death if `until` says that the loop is over. Canceling the task ends the loop for good.
        `idle` marks routine work: while nothing else happens, a fleet under test may skip rounds of the loop.
        """
        kept = _KeptLoop(name, work, critical, until, self._limits)
        self.health._kept[kept] = None
        kept.task = task = self.start(self._keep(kept), name=name)
        if idle:
            _IDLE.add(task)
        task.add_done_callback(lambda _: self.health._kept.pop(kept))
        return task

    async def _keep(self, kept: _KeptLoop) -> None:
        now = asyncio.get_running_loop().time
        while True:
            kept.began = now()
            error = await _life(kept)
            if error is None:
                return
            healthy = now() - kept.began >= kept.limits.healthy_seconds
            kept.deaths_in_a_row = 1 if healthy else kept.deaths_in_a_row + 1
            kept.error, kept.paused = type(error).__name__, True
            self.health._note(kept, error)
            pauses = Backoff(kept.limits.first_pause_seconds, kept.limits.longest_pause_seconds)
            seconds = pauses.pause(kept.deaths_in_a_row)
            log.error(
                "A loop died; it is started again",
                exc_info=error,
                extra={
                    "loop": kept.name,
                    "critical": kept.critical,
                    "error": repr(error),
                    "deaths_in_a_row": kept.deaths_in_a_row,
                    "pause_seconds": seconds,
                },
            )
            if not await _paused(kept, seconds):
                return
            kept.paused = False

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A background task crashed", exc_info=error, extra={"task_name": task.get_name()})

    async def close(self) -> None:
        """Cancel all of the supervisor's asyncio tasks that still run, and wait for their end."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def is_idle(task: asyncio.Task[Any]) -> bool:
    """Tell whether an asyncio task runs a loop of routine work, which `Supervisor.keep` started with `idle=True`."""
    return task in _IDLE


async def _life(kept: _KeptLoop) -> Exception | None:
    """Run a supervised loop once; return the error that ended the loop, or None when its owner had ended it."""
    try:
        await kept.work()
    except asyncio.CancelledError as error:
        if cancellations():
            raise
        died = LoopDied("A loop was canceled, and its owner did not ask for that", loop=kept.name)
        died.__cause__ = error
        return died
    except Exception as error:
        if cancellations():
            raise
        return error
    if cancellations() or kept.is_over():
        return None
    return LoopDied("A loop that has no end returned", loop=kept.name)


async def _paused(kept: _KeptLoop, seconds: float) -> bool:
    """Wait for a loop's restart pause; return True to restart the loop, or early False once its owner has ended it."""
    steps = math.ceil(seconds / STEP_SECONDS)
    for _ in range(steps):
        if kept.is_over():
            return False
        await asyncio.sleep(seconds / steps)
    return not kept.is_over()


async def run_until(
    stop: asyncio.Event, *failures: Coroutine[Any, Any, Exception], renew: asyncio.Event | None = None
) -> None:
    """Wait until `stop` or `renew` is set, or until one of the `failures` returns an error, which is then raised.

    Raises:
        Exception: the error that the first failure returns.
    """
    failing = [asyncio.ensure_future(failure) for failure in failures]
    stopping = [asyncio.ensure_future(event.wait()) for event in (stop, renew) if event is not None]
    try:
        done, _ = await asyncio.wait((*stopping, *failing), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*stopping, *failing):
            task.cancel()
    for failed in failing:
        if failed in done:
            raise failed.result()


async def happened(event: asyncio.Event, within_seconds: float | None) -> bool:
    """Wait for an event, for ever if None is given; return whether it was set within the given time."""
    try:
        async with asyncio.timeout(within_seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
