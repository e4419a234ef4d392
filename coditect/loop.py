"""The event loop of every program of ours: uvloop's when it is installed (the `speed` extra), else asyncio's.

The one place that chooses. A loop that a user's program runs is theirs; nothing here touches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

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
