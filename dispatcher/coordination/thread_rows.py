"""The rows of message threads: one for each thread, message, participant, and process that listens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, field
from typing import Any

from coditect.errors import NotFound
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import THREAD_MEMBERS, THREAD_MESSAGES, THREAD_READERS, THREAD_SENT, THREADS
from dispatcher.store.transaction import Reads, Transaction

MOST_READERS = 200
"""The number of processes that listen to one thread at most."""


@dataclass(slots=True)
class ThreadRecord:
    """A message thread: who takes part, which task or workflow it belongs to, and how many messages it has."""

    id: str
    type: str
    title: str
    participants: list[str]
    task: str
    """The task that the thread is bound to; empty without one."""
    workflow: str
    opener: str
    begun_ms: int
    last_ms: int
    """When the last message was said, or the thread was opened or closed: the retention runs from then on."""
    keep_ms: int
    last: int = 0
    """The number of the last message; 0 without one."""
    closed_ms: int = 0
    """When the thread was closed; 0 while it is open."""
    reason: str = ""
    """Why it was closed."""
    ticket: str = ""
    """The ticket of another system, such as an issue tracker, that the thread is about; empty without one."""
    metadata: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the message thread as JSON values for answers to requests."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "id"}
        return {"thread": self.id, **fields}


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A message of a thread, as it was sent and as the store keeps it."""

    id: str
    sender: str
    """The participant that said it."""
    by: str
    """The agent process or client that sent it."""
    task: str
    type: str
    value: Any
    to: list[str]
    """The participants that it is for; empty for all."""
    metadata: dict[str, Any]
    at_ms: int

    def as_json(self, number: int) -> dict[str, Any]:
        """Return the message as JSON values for answers to requests, with its number."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "id"}
        return {"message": self.id, "number": number, **fields}

    def is_for(self, names: list[str]) -> bool:
        """Tell whether one of these participants sent the message, or the message is for one of them or for all."""
        return not self.to or self.sender in names or not set(self.to).isdisjoint(names)


@dataclass(frozen=True, slots=True)
class Member:
    """The progress of one participant of a message thread: the last message read, and the number of messages sent."""

    read: int = 0
    """The number of the last message that it has read."""
    said: int = 0


@dataclass(frozen=True, slots=True)
class Listening:
    """A process that wants to be informed of a message thread's new messages, for one participant."""

    ticket: str
    participant: str
    reply_to: str


def find(tr: Reads, thread: str) -> ThreadRecord | None:
    """Return the record of a message thread; None when it is unknown, or its retention is over."""
    row = tr.get(THREADS.pack((thread,)))
    return None if row is None else unpack(thread, row)


def read(tr: Reads, thread: str) -> ThreadRecord:
    """Return the record of a message thread; raise NotFound when it is unknown, or its retention is over.

    Raises:
        NotFound: when the thread is unknown, or its retention is over.
    """
    found = find(tr, thread)
    if found is None:
        fix = "coditect thread list shows those that are kept"
        raise NotFound("There is no such thread, or it is not kept any more", thread=thread[:80], fix=fix)
    return found


def unpack(thread: str, row: bytes) -> ThreadRecord:
    """Decode a message thread's row in the store."""
    return ThreadRecord(thread, *versions.THREAD.unpack(row))


def write(tr: Transaction, thread: ThreadRecord) -> None:
    """Write the row of a message thread, without its messages, participants and listeners."""
    tr.set(THREADS.pack((thread.id,)), packed_thread(thread))


def packed_thread(thread: ThreadRecord) -> bytes:
    """Encode a message thread as its row in the store.

    Raises:
        InvalidTask: when the metadata are nested too deep.
    """
    return versions.THREAD.pack_checked(astuple(thread)[1:])


def said(tr: Reads, thread: str, message: str) -> int | None:
    """Return the number of a thread's message by the message's id; None when the thread has no such message."""
    row = tr.get(THREAD_SENT.pack((thread, message)))
    return None if row is None else int(versions.THREAD_SENT.unpack(row)[0])


def message(tr: Reads, thread: str, number: int) -> KeptMessage | None:
    """Return a thread's message by its number; None when there is none."""
    row = tr.get(THREAD_MESSAGES.pack((thread, number)))
    return None if row is None else KeptMessage(*versions.THREAD_MESSAGE.unpack(row))


def packed(kept: KeptMessage) -> bytes:
    """Encode a thread's message as its row in the store.

    Raises:
        InvalidTask: when the message is nested too deep.
    """
    return versions.THREAD_MESSAGE.pack_checked(astuple(kept))


def add(tr: Transaction, thread: ThreadRecord, number: int, kept: KeptMessage) -> None:
    """Write a thread's message under its number, and the number under the message's id."""
    tr.set(THREAD_MESSAGES.pack((thread.id, number)), packed(kept))
    tr.set(THREAD_SENT.pack((thread.id, kept.id)), versions.THREAD_SENT.pack((number,)))


def member(tr: Reads, thread: str, participant: str) -> Member:
    """Return a participant's progress in a message thread: the last message read, and the number of messages sent."""
    row = tr.get(THREAD_MEMBERS.pack((thread, participant)))
    return Member() if row is None else Member(*versions.THREAD_MEMBER.unpack(row))


def write_member(tr: Transaction, thread: str, participant: str, done: Member) -> None:
    """Write a participant's progress in a message thread: the last message read, and the number of messages sent."""
    tr.set(THREAD_MEMBERS.pack((thread, participant)), versions.THREAD_MEMBER.pack((done.read, done.said)))


def listening(tr: Reads, thread: str) -> Iterator[Listening]:
    """Yield the processes that listen to a message thread."""
    for key, row in tr.get_range(*THREAD_READERS.range((thread,)), limit=MOST_READERS):
        participant, reply_to = versions.THREAD_READER.unpack(row)
        yield Listening(str(THREAD_READERS.unpack(key)[1]), participant, reply_to)


def listen(tr: Transaction, thread: str, listener: Listening) -> None:
    """Add a process to those that are informed of a message thread's new messages."""
    tr.set(
        THREAD_READERS.pack((thread, listener.ticket)),
        versions.THREAD_READER.pack((listener.participant, listener.reply_to)),
    )


def leave(tr: Transaction, thread: str, ticket: str) -> None:
    """Remove a process from those that are informed of a message thread's new messages."""
    tr.clear(THREAD_READERS.pack((thread, ticket)))


def remove(tr: Transaction, thread: str) -> None:
    """Remove a message thread with its messages, participants and listeners."""
    tr.clear(THREADS.pack((thread,)))
    for space in (THREAD_MESSAGES, THREAD_SENT, THREAD_MEMBERS, THREAD_READERS):
        tr.clear_range(*space.range((thread,)))
