"""The changes of message threads: they open, get messages, are read, close, and come to their retention's end.

A thread belongs to the shard of its id, so its messages are numbered in the order of their commits. A message is known
by an id of its sender: a repeated one is told its number again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from coditect.errors import InputError, InvalidTask, NotFound, TooLarge
from coditect.model.ids import is_uuid
from coditect.model.thread import ThreadMessage, ThreadRow
from coditect.wire.control import Verb
from dispatcher.coordination.table import Table, report
from dispatcher.ledger import keyspace, versions
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import THREAD_MESSAGES, THREAD_SENT
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
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
MAX_THREADS_PAGE = 500
MOST_READERS = 200
"""The number of processes that listen to one thread at most."""


@dataclass(frozen=True, slots=True)
class Member:
    """The progress of one participant of a message thread: the last message read, and the number of messages sent."""

    thread: str
    participant: str
    read: int = 0
    """The number of the last message that it has read."""
    said: int = 0


@dataclass(frozen=True, slots=True)
class Listening:
    """A process that wants to be informed of a message thread's new messages, for one participant."""

    thread: str
    ticket: str
    participant: str
    reply_to: str


THREAD_TABLE = Table(keyspace.THREADS, versions.THREAD, ThreadRow)
MEMBERS = Table(keyspace.THREAD_MEMBERS, versions.THREAD_MEMBER, Member, keys=2)
READERS = Table(keyspace.THREAD_READERS, versions.THREAD_READER, Listening, keys=2)


def messages(thread: str) -> Table[ThreadMessage]:
    """Return the table of a thread's messages, by number."""
    return Table(THREAD_MESSAGES[thread], versions.THREAD_MESSAGE, ThreadMessage)


def open_thread(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Open a message thread under an id that its client chose; a known thread of this id stays as it is.

    Raises:
        InvalidTask: when a field is wrong.
    """
    name = text(body, "thread")
    if THREAD_TABLE.read(unit.tr, name) is not None:
        return show(unit.tr, body)
    if not is_uuid(name):
        raise InvalidTask("The id of a thread is a UUID", field="thread", given=name[:80])
    shortest, longest = RETENTION_BOUNDS_MS
    thread = ThreadRow(
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
        last=0,
        closed_ms=0,
        reason="",
        ticket=_text(body, "ticket"),
        metadata=document(body, "metadata"),
    )
    if (size := THREAD_TABLE.checked_size(thread)) > MOST_MESSAGE_BYTES:
        fix = "put the large part into a message of the thread, or into shared state"
        raise TooLarge("The metadata of a thread are too large", bytes=size, limit=MOST_MESSAGE_BYTES, fix=fix)
    THREAD_TABLE.write(unit.tr, thread)
    _keep(unit, thread)
    facts = {"thread_type": thread.type, "participants": thread.participants, "task": thread.task}
    unit.effects.say("agent.collab.started", thread.thread, workflow_id=thread.workflow, **facts)
    return show(unit.tr, body)


def say(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Add a message to a thread, and push it to the listeners that it is for; a repeated one is not added again.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
        InputError: when the sender takes no part, the thread is closed or full, or a field is wrong.
        TooLarge: when the message is over the limit.
    """
    thread, name = _find(unit.tr, body), _name(body, "message")
    known = unit.tr.get(THREAD_SENT.pack((thread.thread, name)))
    if known is not None:
        said = int(versions.THREAD_SENT.unpack(known)[0])
        kept = messages(thread.thread).read(unit.tr, said)
        return {"number": said, "at_ms": 0 if kept is None else kept.at_ms}
    sender = _participant(thread, body)
    done = _member(unit.tr, thread, sender)
    _check_room(thread, sender, done)
    kept = _read(unit, thread, sender, body)
    messages(thread.thread).write(unit.tr, kept)
    unit.tr.set(THREAD_SENT.pack((thread.thread, name)), versions.THREAD_SENT.pack((kept.number,)))
    THREAD_TABLE.write(unit.tr, replace(thread, last=kept.number, last_ms=unit.now_ms))
    MEMBERS.write(unit.tr, replace(done, said=done.said + 1))
    for listener in READERS.every(unit.tr, thread.thread, limit=MOST_READERS):
        if listener.participant != sender and _is_for(kept, [listener.participant]):
            unit.effects.push(listener.reply_to, listener.ticket, report(kept))
    facts = {"number": kept.number, "sender": sender, "message_type": kept.type, "to": kept.to, "task": thread.task}
    unit.effects.say("agent.message.sent", thread.thread, workflow_id=thread.workflow, **facts)
    return {"number": kept.number, "at_ms": unit.now_ms}


def read(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Record how far a participant has read a thread and if it listens; return the message count, and if it is closed.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
        InputError: when the reader takes no part, or too many listen.
    """
    thread = _find(unit.tr, body)
    participant = _participant(thread, body)
    done = _member(unit.tr, thread, participant)
    upto = min(number(body, "number", 1), thread.last) if body.get("number") else 0
    if upto > done.read:
        MEMBERS.write(unit.tr, replace(done, read=upto))
    if body.get("ticket") and body.get("reply_to"):
        _listen(unit, thread, participant, body)
    elif body.get("ticket"):
        READERS.remove(unit.tr, thread.thread, _name(body, "ticket"))
    return {"last": thread.last, "closed": thread.closed_ms > 0}


def close(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Close a message thread, and tell those who listen; a closed one stays as it is.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    thread = _find(unit.tr, body)
    if not thread.closed_ms:
        thread = replace(thread, closed_ms=unit.now_ms, last_ms=unit.now_ms, reason=_text(body, "reason"))
        THREAD_TABLE.write(unit.tr, thread)
        for listener in READERS.every(unit.tr, thread.thread, limit=MOST_READERS):
            unit.effects.push(listener.reply_to, listener.ticket, {"closed": True})
        facts = {"reason": thread.reason, "messages": thread.last, "task": thread.task}
        unit.effects.say("agent.collab.ended", thread.thread, workflow_id=thread.workflow, **facts)
    return show(unit.tr, body)


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Remove a thread whose retention is over, or set the timer again if a message or the close restarted it."""
    thread = THREAD_TABLE.read(unit.tr, timer.node)
    if thread is None:
        return
    if thread.last_ms + thread.keep_ms > unit.now_ms:
        _keep(unit, thread)
        return
    THREAD_TABLE.remove(unit.tr, thread.thread)
    for space in (THREAD_MESSAGES, THREAD_SENT, MEMBERS.space, READERS.space):
        unit.tr.clear_range(*space.range((thread.thread,)))
    if not thread.closed_ms:
        facts = {"reason": "its retention is over", "messages": thread.last, "task": thread.task}
        unit.effects.say("agent.collab.ended", thread.thread, workflow_id=thread.workflow, **facts)


def _keep(unit: UnitOfWork, thread: ThreadRow) -> None:
    unit.set_timer(Timer("", thread.thread, EXPIRY, thread.last_ms + thread.keep_ms))


def _check_room(thread: ThreadRow, sender: str, done: Member) -> None:
    if thread.closed_ms:
        raise InputError("The thread is closed", thread=thread.thread, reason=thread.reason, fix="open another one")
    if done.said >= MOST_SAID:
        fix = "open another thread"
        raise InputError("This participant has said all that it may", participant=sender, most=MOST_SAID, fix=fix)
    if thread.last >= MOST_MESSAGES:
        raise InputError("The thread is full", thread=thread.thread, most=MOST_MESSAGES, fix="open another thread")


def _read(unit: UnitOfWork, thread: ThreadRow, sender: str, body: Body) -> ThreadMessage:
    to, metadata = _names(body, "to", least=0), document(body, "metadata")
    if strangers := set(to) - set(thread.participants):
        known = thread.participants
        fix = "name participants, or no one at all for all of them"
        raise InputError("This is no participant of the thread", given=sorted(strangers)[:5], known=known, fix=fix)
    by, task = (_text(body, field) for field in ("writer", "task"))
    kind = _name(body, "type", "text")
    said = (sender, by, task, kind, body.get("value"), to, metadata, unit.now_ms)
    kept = ThreadMessage(thread.last + 1, _name(body, "message"), *said)
    if (size := messages(thread.thread).checked_size(kept)) > MOST_MESSAGE_BYTES:
        fix = "put the large part into shared state or a blob, and say where it is"
        raise TooLarge("A message is too large for a thread", bytes=size, limit=MOST_MESSAGE_BYTES, fix=fix)
    return kept


def _listen(unit: UnitOfWork, thread: ThreadRow, participant: str, body: Body) -> None:
    listener = Listening(thread.thread, _name(body, "ticket"), participant, _name(body, "reply_to"))
    before = [each.ticket for each in READERS.every(unit.tr, thread.thread, limit=MOST_READERS)]
    if len(before) >= MOST_READERS and listener.ticket not in before:
        fix = "read from time to time"
        raise InputError("Too many listen to this thread", thread=thread.thread, most=MOST_READERS, fix=fix)
    READERS.write(unit.tr, listener)


def _participant(thread: ThreadRow, body: Body) -> str:
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


def show(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a message thread, with the number of the last message that each participant has read.

    Raises:
        NotFound: when it is unknown, or its retention is over.
    """
    thread = _find(tr, body)
    read = {participant: _member(tr, thread, participant).read for participant in thread.participants}
    return report(replace(thread, read=read))


def list_messages(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of a thread's messages in order; with `names`, only those that these participants may read.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    thread, names = _find(tr, body), body.get("names")
    found, following = messages(thread.thread).page(tr, body, max_page=MAX_THREADS_PAGE, large=True)
    readers = names if isinstance(names, list) else []
    shown = [report(kept) for kept in found if not readers or _is_for(kept, readers)]
    return {"messages": shown, "next": following}


def list_threads(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the threads, sorted by id: all, those of a `participant`, `task` and so on, or open ones."""
    threads, following = THREAD_TABLE.page(tr, body, max_page=MAX_THREADS_PAGE)
    return {"threads": [report(thread) for thread in threads if _fits(thread, body)], "next": following}


def _find(tr: Reads, body: Body) -> ThreadRow:
    name = text(body, "thread")
    found = THREAD_TABLE.read(tr, name)
    if found is None:
        fix = "coditect thread list shows those that are kept"
        raise NotFound("There is no such thread, or it is not kept any more", thread=name[:80], fix=fix)
    return found


def _member(tr: Reads, thread: ThreadRow, participant: str) -> Member:
    return MEMBERS.read(tr, thread.thread, participant) or Member(thread.thread, participant)


def _is_for(kept: ThreadMessage, names: list[str]) -> bool:
    """Tell whether one of these participants sent the message, or the message is for one of them or for all."""
    return not kept.to or kept.sender in names or not set(kept.to).isdisjoint(names)


def _fits(thread: ThreadRow, body: Body) -> bool:
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
