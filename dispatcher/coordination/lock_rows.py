"""The rows of locks: lock requests (tickets), their places in resources' queues, and the counter of their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dispatcher.coordination.table import Table
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import LOCK_COUNT, LOCK_OWNERS, LOCK_QUEUES, LOCKS
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

SHARED = "shared"
EXCLUSIVE = "exclusive"
AT_MOST = "at_most:"
"""The beginning of the mode `at_most:3`, by which a ticket waits until fewer than 3 places are before its own."""
MAX_HOLDERS = 1_000
FIRST_READ = 2
MOST_READ = 100
"""The most places that each read after the first returns; most queues need only the `FIRST_READ` first places."""
MOST_HOLDERS = 200
"""How many holders one transaction reads at most: each is a round trip, and a transaction has five seconds."""


@dataclass(slots=True)
class Ticket:
    """A request to lock some resources together for one flow of execution, which waits, or holds them once granted."""

    id: str
    agent: str
    """The agent or client that asked; when it is evicted, all of its tickets go."""
    task: str
    owner: str
    """The flow of execution that asked: one flow waits for one ticket at a time, and for nothing it holds itself."""
    mode: str
    resources: list[str]
    ttl_ms: int
    reply_to: str
    number: int
    """The place in the queues: the tickets of a resource are granted in the order of their numbers."""
    fence: int
    """The fencing token of the grant; 0 while the ticket waits."""
    begun_ms: int
    expires_ms: int
    """The instant at which the ticket expires unless its owner renews it; later if the shard changes its owner."""
    reason: str = ""
    """Why its owner wants the lock, in the owner's words."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a lock request (ticket) in one resource's queue, which it keeps while it holds the resource."""

    resource: str
    number: int
    ticket: str
    mode: str
    agent: str
    owner: str

    @property
    def flow(self) -> tuple[str, str]:
        """The agent that asked for the lock, and the flow of execution in it that did so, such as an asyncio task."""
        return self.agent, self.owner

    def bars(self, mode: str) -> bool:
        """Tell whether this place makes a later lock request of the given mode wait, since one of them is exclusive."""
        return EXCLUSIVE in (self.mode, mode)


TICKETS = Table(LOCKS, versions.LOCK, Ticket)
PLACES = Table(LOCK_QUEUES, versions.LOCK_QUEUE, Place, keys=2)


def most_together(mode: str) -> int | None:
    """Return how many lock requests may hold a resource together by a mode `at_most:N`; None for any other mode."""
    prefix, _, count = mode.partition(AT_MOST)
    if prefix or not (count.isascii() and count.isdigit() and len(count) <= len(str(MAX_HOLDERS))):
        return None
    return int(count) if 1 <= int(count) <= MAX_HOLDERS else None


def is_barred(tr: Reads, ticket: Ticket) -> bool:
    """Tell whether a lock request has to wait for earlier ones, which hold one of its resources or wait for it, too."""
    limit = most_together(ticket.mode)
    for resource in ticket.resources:
        before = places(tr, resource, before=ticket.number)
        if limit is not None:
            first = list(islice(before, limit))
            if len(first) == limit or any(place.bars(ticket.mode) for place in first):
                return True
        elif any(place.bars(ticket.mode) for place in before):
            return True
    return False


def add(unit: UnitOfWork, ticket: Ticket) -> None:
    """Write a lock request (ticket) and its places, which its number decides, in the queues of its resources."""
    TICKETS.write(unit.tr, ticket)
    for resource in ticket.resources:
        PLACES.write(unit.tr, Place(resource, ticket.number, ticket.id, ticket.mode, ticket.agent, ticket.owner))
    unit.tr.set(LOCK_OWNERS.pack((ticket.agent, ticket.owner, ticket.id)), b"")


def remove(unit: UnitOfWork, ticket: Ticket) -> None:
    """Remove a lock request (ticket) and its places in the queues of its resources."""
    TICKETS.remove(unit.tr, ticket.id)
    for resource in ticket.resources:
        PLACES.remove(unit.tr, resource, ticket.number)
    unit.tr.clear(LOCK_OWNERS.pack((ticket.agent, ticket.owner, ticket.id)))


def places(tr: Reads, resource: str, *, before: int | None = None, first: int = FIRST_READ) -> Iterator[Place]:
    """Yield the places of lock requests, holding or waiting, at a resource in order, or those before number `before`.

    Rows are read only as needed, `first` of them together.
    """
    begin, end = LOCK_QUEUES.range((resource,))
    if before is not None:
        end = LOCK_QUEUES.pack((resource, before))
    limit = first
    while rows := tr.get_range(begin, end, limit=limit):
        yield from map(PLACES.unpack, rows)
        if len(rows) < limit:
            return
        begin, limit = rows[-1][0] + b"\0", MOST_READ


def next_number(unit: UnitOfWork) -> int:
    """Return a number for a lock request's place or fence, above all given before in any incarnation of the store."""
    row = unit.tr.get(LOCK_COUNT.pack())
    last = 0 if row is None else int(versions.LOCK_COUNT.unpack(row)[0])
    number = max(last, unit.policy.floor) + 1
    unit.tr.set(LOCK_COUNT.pack(), versions.LOCK_COUNT.pack((number,)))
    return number


def tickets_of(tr: Reads, agent: str, owner: str | None = None, *, limit: int = 0) -> Sequence[str]:
    """Return the ids of the lock requests, held and waiting, of an agent or, with `owner`, of one of its flows."""
    prefix = (agent,) if owner is None else (agent, owner)
    return [LOCK_OWNERS.unpack(key)[2] for key, _ in tr.get_range(*LOCK_OWNERS.range(prefix), limit=limit)]


def holders(tr: Reads, after: str = "", limit: int = MOST_HOLDERS) -> list[str]:
    """Return at most `most` names of agents and clients that hold or await locks, sorted, those after `after`.

    Each costs one read.
    """
    found, (begin, end) = list[str](), LOCK_OWNERS.range(())
    if after:
        begin = LOCK_OWNERS.range((after,))[1]
    while len(found) < limit and (rows := tr.get_range(begin, end, limit=1)):
        found.append(str(LOCK_OWNERS.unpack(rows[0][0])[0]))
        begin = LOCK_OWNERS.range((found[-1],))[1]
    return found


def tickets_of_task(tr: Reads, agent: str, task: str) -> Sequence[str]:
    """Return the ids of the lock requests, held and waiting, of all flows of execution of one task of an agent."""
    begin, end = LOCK_OWNERS.pack((agent, of_task(task))), LOCK_OWNERS.pack((agent, f"{task}0"))
    return [LOCK_OWNERS.unpack(key)[2] for key, _ in tr.get_range(begin, end)]


def of_task(task: str) -> str:
    """Return `<task>/`: the owner name of locks that a handoff gave a task, and a prefix of its own flows' names."""
    return f"{task}/"
