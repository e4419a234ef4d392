"""The read-only requests about message threads: show one, list its messages in order, and list all threads."""

from __future__ import annotations

from typing import Any

from coditect.errors import InvalidTask
from dispatcher.coordination.threads import rows
from dispatcher.coordination.threads.rows import KeptMessage, ThreadRecord
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import THREAD_MESSAGES, THREADS
from dispatcher.ledger.workflows.queries import Body, page_of, rows_within
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

MOST_AT_ONCE = 500


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a message thread, with the number of the last message that each participant has read.

    Raises:
        NotFound: when it is unknown, or its retention is over.
    """
    thread = rows.read(tr, text(body, "thread"))
    receipts = {one: rows.member(tr, thread.id, one).read for one in thread.participants}
    return thread.as_json() | {"read": receipts}


def list_messages(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of a thread's messages in order; with `names`, only those that these participants may read.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    thread, names = rows.read(tr, text(body, "thread")), body.get("names")
    after, limit = body.get("after") or 0, min(number(body, "limit", 100), MOST_AT_ONCE)
    if isinstance(after, bool) or not isinstance(after, int) or after < 0:
        raise InvalidTask("This is no place in a list of messages", field="after")
    begin = THREAD_MESSAGES.pack((thread.id, after + 1))
    found, _ = rows_within(tr, begin, THREAD_MESSAGES.range((thread.id,))[1], limit=limit)
    told = []
    for key, row in found:
        after, kept = int(THREAD_MESSAGES.unpack(key)[1]), KeptMessage(*versions.THREAD_MESSAGE.unpack(row))
        if not (isinstance(names, list) and names) or kept.is_for(names):
            told.append(kept.as_json(after))
    return {"messages": told, "next": after if after < thread.last else None}


def list_threads(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the threads, sorted by id: all, those of a `participant`, `task` or `workflow`, or open ones."""
    found, following = page_of(tr, THREADS, (), body, most=MOST_AT_ONCE)
    threads = [rows.unpack(str(THREADS.unpack(key)[0]), row) for key, row in found]
    return {"threads": [one.as_json() for one in threads if _fits(one, body)], "next": following}


def _fits(thread: ThreadRecord, body: Body) -> bool:
    return (
        body.get("participant") in (None, *thread.participants)
        and body.get("task") in (None, thread.task)
        and body.get("workflow") in (None, thread.workflow)
        and not (body.get("open") and thread.closed_ms)
    )
