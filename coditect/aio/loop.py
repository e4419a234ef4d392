"""The event loop of every program of ours: uvloop's when it is installed (the `speed` extra), else asyncio's.

The one place that chooses. A loop that a user's program runs is theirs; nothing here touches it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

GC_THRESHOLDS = (50_000, 20, 50)

uvloop: Any
try:
    import uvloop
except ImportError:  # the `speed` extra is not installed
    uvloop = None


def new_runner() -> asyncio.Runner:
    """A runner of the fastest loop that is installed; to be entered, or closed, by whoever asked for it."""
    return asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop)


def plain_runner() -> asyncio.Runner:
    """A runner of asyncio's own selector loop, whose time can be made virtual."""
    return asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a program's coroutine to its end on a loop of its own, as `asyncio.run` does."""
    with new_runner() as runner:
        return runner.run(work)


def collect_rarely() -> None:
    """For a program whose start-up is over: what that made is not looked at again, and the rest rarely.

    What is in flight is young and many: looking at it every 700 allocations costs an agent a tenth of its throughput,
    and a dispatcher, which remembers thousands of nodes, a quarter.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
