"""The event loop of the project's programs: uvloop when the `speed` extra is installed, else asyncio's own.

No other module chooses a loop. A loop that a user's program runs is left alone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from coditect.errors import SetupError

T = TypeVar("T")

log = logging.getLogger(__name__)
_FIX = "see what calls loop.stop() or sys.exit(): a handler returns or raises"
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
                log.error("The event loop was stopped by a task; it runs again", exc_info=error, extra={"fix": _FIX})


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
        self._closed = False

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

    @property
    def was_left(self) -> bool:
        """True after `leave`."""
        return self._closed

    def leave(self) -> None:
        """Have no home any more; another one may follow."""
        self._loop, self._closed = None, True

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
            sentence = f"The {noun} is closed" if self._closed else f"The {noun} is not open"
            return SetupError(sentence, fix=f"use it inside of its block: `async with ... as {noun}:`")
        if self._loop.is_closed():
            sentence = f"The {noun}'s event loop has ended"
            return SetupError(sentence, fix="use one `asyncio.run` for everything, or Client.sync(), which needs none")
        sentence = f"The {noun} is open in another event loop"
        return SetupError(sentence, fix="use it in the loop and thread that opened it; threads share a Client.sync()")


class _AtHome:
    """A port whose every use is refused unless its home is the running event loop."""

    __slots__ = ("_check", "_port")

    def __init__(self, port: object, check: Callable[[], None]) -> None:
        self._port = port
        self._check = check

    def __getattr__(self, name: str) -> Any:
        self._check()
        return getattr(self._port, name)


def at_home(port: T, home: HomeLoop) -> T:
    """Return a port that raises SetupError when it is used outside of its home loop, which costs one comparison."""
    return cast("T", _AtHome(port, home.check))


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
