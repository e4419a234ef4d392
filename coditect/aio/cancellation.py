"""The check that no cancellation of an asyncio task is lost when a called library swallows it.

Python 3.11's `wait_for`, which aiormq and redis-py use, drops a cancellation that arrives together with the awaited
result. An endless loop over such calls would then never end, and the code that canceled the loop would wait for ever.
So the adapters make their calls within `heeded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


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
