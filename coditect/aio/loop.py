"""The event loop of the project's programs: uvloop when the `speed` extra is installed, else asyncio's own.

No other module chooses a loop. A loop that a user's program runs is left alone.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
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


def on_stop_signal(act: Callable[[], object]) -> None:
    """Call `act` in the running loop at each SIGTERM and SIGINT from now on, in place of what was called before."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, act)


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
