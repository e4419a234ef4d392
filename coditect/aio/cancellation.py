"""Cancellations that a library swallows.

Python 3.11's `wait_for`, which aiormq and redis-py use, drops one that arrives together with what it waits for. An
endless loop over their calls would then never end, and whoever canceled it would wait for it for ever. So the adapters
make their calls within `heeded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


def cancellations() -> int:
    """How often somebody asked the current task to end."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@contextmanager
def heeded() -> Iterator[None]:
    """Whatever comes of the block, a cancellation that arrived within it is raised at its end."""
    before = cancellations()
    try:
        yield
    finally:
        if cancellations() > before:
            raise asyncio.CancelledError
