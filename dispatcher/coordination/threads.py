"""The changes of message threads: they open, get messages, are read, close, and come to their retention's end.

A thread belongs to the shard of its id, so its messages are numbered in the order of their commits. A message is known
by an id of its sender: a repeated one is told its number again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from coditect.errors import InputError, InvalidTask, TooLarge
from coditect.model.ids import is_uuid
from coditect.wire.control import Verb
from dispatcher.coordination import thread_rows
from dispatcher.coordination.thread_rows import KeptMessage, Listening, Member, ThreadRecord
from dispatcher.ledger import versions
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import THREAD_MESSAGES, THREADS
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body, page_of
from dispatcher.ledger.workflows.submit import document, names, number, text
from dispatcher.store.transaction import Reads

EXPIRY = "thread.expiry"
"""The kind of the timer that removes a thread when its retention is over."""
MOST_PARTICIPANTS = 50
LONGEST_PARTICIPANT_BYTES = 200
LONGEST_THREAD_TEXT_BYTES = 1_000
MOST_MESSAGE_BYTES = 64_000
"""The largest size in bytes of a message, all its fields together."""
MOST_MESSAGES = 10_000
MOST_SAID = 2_000
"""The number of messages that one participant says in a thread at most, so that no participant fills it alone."""
DEFAULT_RETENTION_MS = 7 * 24 * 3_600_000
RETENTION_BOUNDS_MS = (60_000, 365 * 24 * 3_600_000)
"""The shortest and the longest retention, in milliseconds."""


def open_thread(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Open a message thread under an id that its client chose; a known thread of this id stays as it is.

    Raises:
        InvalidTask: when a field is wrong.
    """
    name = text(body, "thread")
    known = thread_rows.find(unit.tr, name)
    if known is not None:
        return show(unit.tr, body)
    if not is_uuid(name):
        raise InvalidTask("The id of a thread is a UUID", field="thread", given=name[:80])
    shortest, longest = RETENTION_BOUNDS_MS
    thread = ThreadRecord(
        name,
        _name(body, "type", "discussion"),
        _text(body, "title"),
        _names(body, "participants", least=1),
        _text(body, "task"),
        _text(body, "workflow"),
        _text(body, "writer"),
        unit.now_ms,
        unit.now_ms,
        min(max(number(body, "keep_ms", DEFAULT_RETENTION_MS), shortest), longest),
        ticket=_text(body, "ticket"),
        metadata=document(body, "metadata"),
    )
    if (size := len(thread_rows.packed_thread(thread))) > MOST_MESSAGE_BYTES:
        fix = "put the large part into a message of the thread, or into shared state"
        raise TooLarge("The metadata of a thread are too large", bytes=size, limit=MOST_MESSAGE_BYTES, fix=fix)
    thread_rows.write(unit.tr, thread)
    _keep(unit, thread)
    facts = {"thread_type": thread.type, "participants": thread.participants, "task": thread.task}
    unit.effects.say("agent.collab.started", thread.id, workflow_id=thread.workflow, **facts)
    return show(unit.tr, body)


def say(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Add a message to a thread, and push it to the listeners that it is for; a repeated one is not added again.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
        InputError: when the sender takes no part, the thread is closed or full, or a field is wrong.
        TooLarge: when the message is over the limit.
    """
    thread, name = thread_rows.read(unit.tr, text(body, "thread")), _name(body, "message")
    known = thread_rows.said(unit.tr, thread.id, name)
    if known is not None:
        kept = thread_rows.message(unit.tr, thread.id, known)
        return {"number": known, "at_ms": 0 if kept is None else kept.at_ms}
    sender = _participant(thread, body)
    done = thread_rows.member(unit.tr, thread.id, sender)
    _check_room(thread, sender, done)
    kept = _read(unit, thread, sender, body)
    thread.last, thread.last_ms = thread.last + 1, unit.now_ms
    thread_rows.add(unit.tr, thread, thread.last, kept)
    thread_rows.write(unit.tr, thread)
    thread_rows.write_member(unit.tr, thread.id, sender, Member(done.read, done.said + 1))
    for listener in thread_rows.listening(unit.tr, thread.id):
        if listener.participant != sender and kept.is_for([listener.participant]):
            unit.effects.push(listener.reply_to, listener.ticket, kept.as_json(thread.last))
    facts = {"number": thread.last, "sender": sender, "message_type": kept.type, "to": kept.to, "task": thread.task}
    unit.effects.say("agent.message.sent", thread.id, workflow_id=thread.workflow, **facts)
    return {"number": thread.last, "at_ms": unit.now_ms}


def read(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Record how far a participant has read a thread and if it listens; return the message count, and if it is closed.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
        InputError: when the reader takes no part, or too many listen.
    """
    thread = thread_rows.read(unit.tr, text(body, "thread"))
    participant = _participant(thread, body)
    done = thread_rows.member(unit.tr, thread.id, participant)
    upto = min(number(body, "number", 1), thread.last) if body.get("number") else 0
    if upto > done.read:
        thread_rows.write_member(unit.tr, thread.id, participant, Member(upto, done.said))
    if body.get("ticket") and body.get("reply_to"):
        _listen(unit, thread, participant, body)
    elif body.get("ticket"):
        thread_rows.leave(unit.tr, thread.id, _name(body, "ticket"))
    return {"last": thread.last, "closed": thread.closed_ms > 0}


def close(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Close a message thread, and tell those who listen; a closed one stays as it is.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    thread = thread_rows.read(unit.tr, text(body, "thread"))
    if not thread.closed_ms:
        thread.closed_ms = thread.last_ms = unit.now_ms
        thread.reason = _text(body, "reason")
        thread_rows.write(unit.tr, thread)
        for listener in thread_rows.listening(unit.tr, thread.id):
            unit.effects.push(listener.reply_to, listener.ticket, {"closed": True})
        facts = {"reason": thread.reason, "messages": thread.last, "task": thread.task}
        unit.effects.say("agent.collab.ended", thread.id, workflow_id=thread.workflow, **facts)
    return show(unit.tr, body)


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Remove a thread whose retention is over, or set the timer again if a message or the close restarted it."""
    thread = thread_rows.find(unit.tr, timer.node)
    if thread is None:
        return
    if thread.last_ms + thread.keep_ms > unit.now_ms:
        _keep(unit, thread)
        return
    thread_rows.remove(unit.tr, thread.id)
    if not thread.closed_ms:
        facts = {"reason": "its retention is over", "messages": thread.last, "task": thread.task}
        unit.effects.say("agent.collab.ended", thread.id, workflow_id=thread.workflow, **facts)


def _keep(unit: UnitOfWork, thread: ThreadRecord) -> None:
    unit.set_timer(Timer("", thread.id, EXPIRY, thread.last_ms + thread.keep_ms))


def _check_room(thread: ThreadRecord, sender: str, done: Member) -> None:
    if thread.closed_ms:
        raise InputError("The thread is closed", thread=thread.id, reason=thread.reason, fix="open another one")
    if done.said >= MOST_SAID:
        fix = "open another thread"
        raise InputError("This participant has said all that it may", participant=sender, most=MOST_SAID, fix=fix)
    if thread.last >= MOST_MESSAGES:
        raise InputError("The thread is full", thread=thread.id, most=MOST_MESSAGES, fix="open another thread")


def _read(unit: UnitOfWork, thread: ThreadRecord, sender: str, body: Body) -> KeptMessage:
    to, metadata = _names(body, "to", least=0), document(body, "metadata")
    if strangers := set(to) - set(thread.participants):
        known = thread.participants
        fix = "name participants, or no one at all for all of them"
        raise InputError("This is no participant of the thread", given=sorted(strangers)[:5], known=known, fix=fix)
    by, task = (_text(body, field) for field in ("writer", "task"))
    kind = _name(body, "type", "text")
    kept = KeptMessage(_name(body, "message"), sender, by, task, kind, body.get("value"), to, metadata, unit.now_ms)
    if (size := len(thread_rows.packed(kept))) > MOST_MESSAGE_BYTES:
        fix = "put the large part into shared state or a blob, and say where it is"
        raise TooLarge("A message is too large for a thread", bytes=size, limit=MOST_MESSAGE_BYTES, fix=fix)
    return kept


def _listen(unit: UnitOfWork, thread: ThreadRecord, participant: str, body: Body) -> None:
    listener = Listening(_name(body, "ticket"), participant, _name(body, "reply_to"))
    before = [each.ticket for each in thread_rows.listening(unit.tr, thread.id)]
    if len(before) >= thread_rows.MOST_READERS and listener.ticket not in before:
        fix = "read from time to time"
        raise InputError("Too many listen to this thread", thread=thread.id, most=thread_rows.MOST_READERS, fix=fix)
    thread_rows.listen(unit.tr, thread.id, listener)


def _participant(thread: ThreadRecord, body: Body) -> str:
    """Return the participant that sent a request: the first of the sender's names that takes part in the thread."""
    names = _names(body, "names", least=1)
    found = next((name for name in names if name in thread.participants), None)
    if found is None:
        fix = "say it as one of them, or open a thread in which you take part"
        raise InputError("The sender is no participant of the thread", names=names, known=thread.participants, fix=fix)
    return found


_name = partial(text, longest=LONGEST_PARTICIPANT_BYTES)
_text = partial(text, default="", longest=LONGEST_THREAD_TEXT_BYTES)
_names = partial(names, most=MOST_PARTICIPANTS, longest=LONGEST_PARTICIPANT_BYTES)
_shard_key = partial(text, name="thread")


MAX_THREADS_PAGE = 500


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a message thread, with the number of the last message that each participant has read.

    Raises:
        NotFound: when it is unknown, or its retention is over.
    """
    thread = thread_rows.read(tr, text(body, "thread"))
    receipts = {participant: thread_rows.member(tr, thread.id, participant).read for participant in thread.participants}
    return thread.as_json() | {"read": receipts}


def list_messages(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of a thread's messages in order; with `names`, only those that these participants may read.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    thread, names = thread_rows.read(tr, text(body, "thread")), body.get("names")
    found, following = page_of(tr, THREAD_MESSAGES, (thread.id,), body, max_page=MAX_THREADS_PAGE, large=True)
    messages = []
    for key, row in found:
        kept = KeptMessage(*versions.THREAD_MESSAGE.unpack(row))
        if not (isinstance(names, list) and names) or kept.is_for(names):
            messages.append(kept.as_json(int(THREAD_MESSAGES.unpack(key)[1])))
    return {"messages": messages, "next": following}


def list_threads(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the threads, sorted by id: all, those of a `participant`, `task` and so on, or open ones."""
    found, following = page_of(tr, THREADS, (), body, max_page=MAX_THREADS_PAGE)
    threads = [thread_rows.unpack(str(THREADS.unpack(key)[0]), row) for key, row in found]
    return {"threads": [thread.as_json() for thread in threads if _fits(thread, body)], "next": following}


def _fits(thread: ThreadRecord, body: Body) -> bool:
    return (
        body.get("participant") in (None, *thread.participants)
        and body.get("task") in (None, thread.task)
        and body.get("workflow") in (None, thread.workflow)
        and body.get("ticket") in (None, thread.ticket)
        and not (body.get("open") and thread.closed_ms)
    )


THREAD_VERBS: Mapping[str, Query | ShardChange] = {
    # the ids of the thread and of the message say whether it was done
    Verb.THREAD_OPEN: ShardChange(open_thread, _shard_key, deduplicated=False),
    Verb.THREAD_SAY: ShardChange(say, _shard_key, deduplicated=False),
    Verb.THREAD_READ: ShardChange(read, _shard_key, deduplicated=False),
    Verb.THREAD_CLOSE: ShardChange(close, _shard_key, deduplicated=False),
    Verb.THREAD_SHOW: Query(show),
    Verb.THREAD_MESSAGES: Query(list_messages),
    Verb.THREAD_LIST: Query(list_threads),
}
THREAD_TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = {EXPIRY: expired}
