"""The one event loop of every program that is measured: uvloop when it is installed, else asyncio's own."""

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


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the coroutine to its end."""
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        return runner.run(work)
