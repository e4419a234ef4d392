"""The use case that shows a discussion thread with its messages."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

from coditect.model.thread import ThreadMessage, ThreadRow
from coditect.operations.connections import Connections


@dataclass(frozen=True, slots=True)
class ShownThread:
    """A discussion thread with its messages."""

    thread: ThreadRow
    messages: list[ThreadMessage]


async def get_thread(opened: Connections, thread: str, *, after: int = 0, limit: int) -> ShownThread:
    """Return a thread with at most `limit` of its messages, beginning after message number `after`.

    Raises:
        NotFound: when the thread is unknown, or not kept any more.
    """
    async with opened.fleet() as client:
        found, taken = client.threads.get(thread), list[ThreadMessage]()
        async with aclosing(found.history(after=after, everything=True, page=min(limit, 100))) as messages:
            async for message in messages:
                taken.append(message)
                if len(taken) >= limit:
                    break
        return ShownThread(await found.show(), taken)
