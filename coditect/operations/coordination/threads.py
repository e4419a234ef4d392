"""Use cases for discussion threads: list them; show, open and close one, and add a message to it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Unpack

from coditect.client.client import Client
from coditect.collaboration.threads import ThreadMessage, ThreadOptions, ThreadRow
from coditect.operations.connections import Connections


@dataclass(frozen=True, slots=True)
class ShownThread:
    """A discussion thread with its messages."""

    thread: ThreadRow
    messages: list[ThreadMessage]


@dataclass(frozen=True, slots=True)
class SaidMessage:
    """The place of a message that was just said: its thread, and its number in the thread."""

    thread: str
    number: int
    """The number of the message in its thread."""


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
        return await _shown(client, thread, after, limit)


async def _shown(client: Client, thread: str, after: int, limit: int) -> ShownThread:
    found, taken = client.threads.get(thread), list[ThreadMessage]()
    async with aclosing(found.history(after=after, everything=True, page=min(limit, 100))) as messages:
        async for message in messages:
            taken.append(message)
            if len(taken) >= limit:
                break
    return ShownThread(await found.show(), taken)


async def open_thread(
    opened: Connections, participants: list[str], *, by: str, **options: Unpack[ThreadOptions]
) -> ThreadRow:
    """Open a thread for a person and other participants, and return it.

    Raises:
        InputError: when there are more than 50 participants, or a name is too long.
    """
    async with opened.fleet() as client:
        thread = await client.threads.open(*participants, by=by, **options)
        return await thread.show()


async def say(
    opened: Connections,
    thread: str,
    value: Any,
    *,
    by: str,
    type_: str = "text",
    to: list[str],
    answers: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SaidMessage:
    """Add a message of participant `by` to a thread; `answers`, if given, is the number of the message that it answers.

    An answer goes to the sender of that message only; `type_` and `to` do not count then.

    Raises:
        NotFound: when the thread is unknown, or has no message of the number to answer.
        InputError: when `by` takes no part, or the thread is closed or full.
    """
    async with opened.fleet() as client:
        found = client.threads.get(thread, by=by)
        if answers is None:
            return SaidMessage(thread, await found.say(value, type=type_, to=to, metadata=metadata))
        return SaidMessage(thread, await found.answer(await found.message(answers), value))


async def read_thread(opened: Connections, thread: str, number: int, *, by: str) -> ThreadRow:
    """Note that participant `by` has read a thread up to a message, and return the thread.

    Raises:
        NotFound: when the thread is unknown, or not kept any more.
        InputError: when `by` takes no part.
    """
    async with opened.fleet() as client:
        found = client.threads.get(thread, by=by)
        await found.read(number)
        return await found.show()


async def close_thread(opened: Connections, thread: str, *, reason: str) -> ThreadRow:
    """Close a thread, so that it takes no more messages, and return it.

    Raises:
        NotFound: when the thread is unknown, or not kept any more.
    """
    async with opened.fleet() as client:
        found = client.threads.get(thread)
        await found.close(reason)
        return await found.show()
