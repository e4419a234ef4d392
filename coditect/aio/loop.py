"""The event loop of the project's programs: uvloop when the `speed` extra is installed, else asyncio's own.

No other module chooses a loop. A loop that a user's program runs is left alone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar, cast

from coditect.errors import SetupError

log = logging.getLogger(__name__)

T = TypeVar("T")

_SPEED_FIX = "see what calls loop.stop() or sys.exit(): a handler returns or raises"
Runner = asyncio.Runner

GC_THRESHOLDS = (50_000, 20, 50)

uvloop: Any
try:
    import uvloop
except ImportError:  # the `speed` extra is not installed
    uvloop = None


def new_runner() -> Runner:
    """Return an asyncio runner of uvloop, or of asyncio's own event loop without it; the caller closes the runner."""
    return asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop)


def plain_runner() -> Runner:
    """Return an asyncio runner of asyncio's selector loop, whose time can be made virtual."""
    return asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine to its end on a new event loop, as `asyncio.run` does, and return its result."""
    with new_runner() as runner:
        return runner.run(work)


def run_unstoppable_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine to its end, and run the event loop again when a user's code makes it stop.

    `loop.stop()` stops it, and so does a SystemExit or KeyboardInterrupt in an asyncio task that the code started.
    Whatever awaits that asyncio task gets the exception all the same.
    """
    with new_runner() as runner:
        loop = runner.get_loop()
        main = loop.create_task(work)
        while True:
            try:
                return loop.run_until_complete(main)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                if main.done() or (interrupted and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
                    raise
                log.error(
                    "The event loop was stopped by a task; it runs again", exc_info=error, extra={"fix": _SPEED_FIX}
                )


def on_stop_signal(act: Callable[[], object]) -> None:
    """Call `act` in the running loop at each SIGTERM and SIGINT from now on, in place of what was called before."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)


class HomeLoop:
    """The event loop in which something is open, such as a client, and the refusal of any other."""

    def __init__(self, noun: str = "client") -> None:
        """Take the noun by which an error calls what is open."""
        self._noun = noun
        self._loop: asyncio.AbstractEventLoop | None = None
        self.was_left = False
        """True from the first `leave` on, even if another home follows."""

    def enter(self) -> None:
        """Make the running event loop the home.

        Raises:
            SetupError: when there is a home already.
        """
        if self._loop is not None:
            fix = "share the one that is open, or make one for each `async with`"
            raise SetupError(f"The {self._noun} is open already", fix=fix)
        self._loop = asyncio.get_running_loop()

    @property
    def is_open(self) -> bool:
        """True between `enter` and `leave`."""
        return self._loop is not None

    def leave(self) -> None:
        """Have no home any more; another one may follow."""
        self._loop, self.was_left = None, True

    def check(self) -> None:
        """Check that the home is the running event loop.

        Raises:
            SetupError: when it is not.
        """
        if self._loop is not (running := asyncio._get_running_loop()) or running is None:
            raise self._refusal()

    def _refusal(self) -> SetupError:
        noun = self._noun
        if self._loop is None:
            sentence = f"The {noun} is closed" if self.was_left else f"The {noun} is not open"
            return SetupError(sentence, fix=f"use it inside of its block: `async with ... as {noun}:`")
        if self._loop.is_closed():
            sentence = f"The {noun}'s event loop has ended"
            return SetupError(sentence, fix="use one `asyncio.run` for everything, or Client.sync(), which needs none")
        sentence = f"The {noun} is open in another event loop"
        return SetupError(sentence, fix="use it in the loop and thread that opened it; threads share a Client.sync()")


class _AtHome:
    """A port whose every use is refused unless its home is the running event loop."""

    __slots__ = ("_home", "_port")

    def __init__(self, port: Any, home: HomeLoop) -> None:
        self._port = port
        self._home = home

    def __getattr__(self, name: str) -> Any:
        if self._home._loop is None or self._home._loop is not asyncio._get_running_loop():
            self._home.check()
        return getattr(self._port, name)

    def publish(self, *message: Any, **how: Any) -> Any:
        """Publish on the port; without this method each task would pay for a failed look-up before `__getattr__`."""
        if self._home._loop is None or self._home._loop is not asyncio._get_running_loop():
            self._home.check()
        return self._port.publish(*message, **how)


def at_home(port: T, home: HomeLoop) -> T:
    """Return a port that raises SetupError when it is used outside of its home loop, which costs one comparison."""
    return cast("T", _AtHome(port, home))


def keep_signals_from_children() -> None:
    """From now on, let SIGTERM and SIGINT end a child that this process forks, and nothing but the child.

    A forked child shares the descriptor by which a signal wakes the event loop. A SIGTERM to the child, such as
    `multiprocessing.Pool` sends when its block ends, would be taken for one to this process. Until the child has let
    go of the descriptor, the signals wait.
    """
    kept = threading.local()
    ending = (signal.SIGTERM, signal.SIGINT)

    def before() -> None:
        kept.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ending)

    def after_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    def after_in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number in ending:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def collect_rarely() -> None:
    """Make Python's garbage collector run rarely from now on, and exempt all objects that exist already.

    A program calls this once its start-up is over. Objects in flight are young and many: a collection every 700
    allocations costs an agent a tenth of its throughput, and a dispatcher, which remembers thousands of nodes, a
    quarter.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


# A watchdog that ends a program whose event loop is blocked, and logs the line that blocks the loop.
#
# A handler that blocks (`time.sleep` in an `async def`) stops everything that its process does: heartbeats, other
# tasks, signals. A thread therefore checks that the loop still turns. The thread warns after a fifth of the bound with
# the stack of the loop's thread, and ends the process at the bound: the broker gives the tasks to other agents, and the
# program's parent, supervisor or orchestrator starts the program again. Time in which the process itself did not run (a
# stopped process, a busy machine) does not count.
#
# A call into C that never releases the interpreter's lock (a regular expression that backtracks for ever) stops that
# thread, too. Python's `faulthandler` writes the stacks and ends the process then, after three
# to four times the bound.

STALLED_EXIT_CODE = 70
"""The exit code of a process that the watchdog ends: EX_SOFTWARE of sysexits.h."""
LOOP_CHECKS = 20
"""How many times the watchdog checks the event loop within its bound."""
LOOP_CHECKS_TO_WARNING = LOOP_CHECKS // 5
BETWEEN_WARNINGS_SECONDS = 60.0
LOG_SECONDS = 2.0
"""How long the last log line may take: code that blocks the loop may block the log, too."""
_STALL_FIX = (
    "declare the handler as a plain function (def): it gets a thread; or await asyncio.to_thread(...) what blocks"
)


@contextmanager
def watched_loop(bound_seconds: float, *, lag: Callable[[float], object] = lambda _: None) -> Iterator[None]:
    """Watch the running event loop inside the block, and end the process when the loop is blocked beyond the bound.

    A bound of 0 watches nothing, for a debugger that stops in a handler. `lag` is called on the loop, twenty times in
    each bound, with the seconds by which the loop was late.
    """
    if not bound_seconds:
        yield
        return
    with LoopWatchdog(asyncio.get_running_loop(), bound_seconds, lag=lag):
        yield


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
        self._pause_seconds = bound_seconds / LOOP_CHECKS
        self._end = end
        self._turns = 0
        self._next_turn: asyncio.TimerHandle | None = None
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._warned_at = -BETWEEN_WARNINGS_SECONDS
        self._armed_at = -math.inf
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._turn()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
                if looks == LOOP_CHECKS_TO_WARNING:
                    self._warn()
                elif looks >= LOOP_CHECKS:
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
            log.warning("The event loop does not turn: something blocks it", extra=self._facts(LOOP_CHECKS_TO_WARNING))

    def _end_process(self) -> None:
        timer = threading.Timer(LOG_SECONDS, self._end, (STALLED_EXIT_CODE,))
        timer.daemon = True
        timer.start()
        log.error("The event loop stood still for too long: this process ends", extra=self._facts(LOOP_CHECKS))
        timer.cancel()
        self._end(STALLED_EXIT_CODE)

    def _facts(self, looks: int) -> dict[str, object]:
        frame = sys._current_frames().get(self._watched)  # the documented way to another thread's stack
        stack = [] if frame is None else traceback.extract_stack(frame)
        return {
            "stood_still_seconds": round(looks * self._pause_seconds, 1),
            "at": f"{stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}" if stack else "",
            "stack": "".join(traceback.format_list(stack)),
            "fix": _STALL_FIX,
        }
