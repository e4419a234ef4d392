"""Use cases for discussion threads: list them, and show one with its messages."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass

from coditect.collaboration.threads import ThreadMessage, ThreadRow
from coditect.operations.connections import Connections


@dataclass(frozen=True, slots=True)
class ShownThread:
    """A discussion thread with its messages."""

    thread: ThreadRow
    messages: list[ThreadMessage]


async def list_threads(
    opened: Connections,
    *,
    participant: str | None = None,
    task: str | None = None,
    workflow: str | None = None,
    ticket: str | None = None,
    open_only: bool = False,
    closed_only: bool = False,
    limit: int,
) -> list[ThreadRow]:
    """Return up to `limit` discussion threads, earliest first: all, or of one participant, task, workflow or ticket."""
    wanted = {"participant": participant, "task": task, "workflow": workflow, "ticket": ticket}
    listed = list[ThreadRow]()
    async with opened.fleet() as client:
        found = client.threads.list(**wanted, open_only=open_only, limit=None if closed_only else limit)
        async for row in found:
            if row.closed_ms or not closed_only:
                listed.append(row)
            if len(listed) >= limit:
                break
    return listed


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
