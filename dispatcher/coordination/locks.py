"""Locks on named resources for agents and clients: exclusive, shared or for at most N, queued in order.

All locks are in one shard, so its batches serialise them. A ticket has one place in the queue of each of its resources.
It is granted when no place before it bars it, so tickets are granted in order of arrival, and several resources in one
step. The fence of a grant is the next number of one counter that only grows.

A ticket lives once. Whether it was released, expired, refused or handed over: a request that arrives late or again gets
the end of the ticket as its answer, and locks nothing. That holds for a ticket that is released before it arrives, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeAlias

from coditect.errors import InvalidTask
from coditect.model.limits import KEY_LOCKS
from coditect.wire.control import Verb
from dispatcher.coordination import lock_rows as rows
from dispatcher.coordination.lock_rows import AT_MOST, EXCLUSIVE, PLACES, SHARED, TICKETS, Place, Ticket
from dispatcher.ledger import answers, timers, versions
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.ownership.shards import LOCKS_SHARD_KEY, fixed_count, shard_of
from dispatcher.ledger.timers import LOCK_EXPIRY, Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import document, is_name, names, number, text
from dispatcher.store.transaction import Reads, Transaction

MOST_RESOURCES = 32
LONGEST_LOCK_NAME_BYTES = 500
LONGEST_REASON = 500
KEPT_MS = 60_000
"""How long a lock handed over with its task is kept at least, so that the task can lock its resources again."""
MAX_RELEASED = 200
"""The number of tickets that one request releases at most."""
MOST_METADATA_BYTES = 4_000
MOST_HOLDERS_NAMED = 5
"""The number of holders that the answer to a request for a taken lock names at most."""
TTL_MS = (1_000, 3_600_000)
"""The shortest and the longest time after which a ticket that is not renewed is gone, in milliseconds."""


GONE = "gone"
"""The state of a ticket that has ended, and of one that nobody knows."""


def acquire(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Lock resources under the client's chosen id; return held, waiting, taken (no wait), deadlock or gone (ended).

    A repeated request gets the ticket's present state, or its end. With `wait` false the answer is "taken" instead of
    waiting. A ticket that would wait for ever is not taken: the answer names the cycle.
    """
    ((known, end),) = _find(unit, [text(body, "ticket")])
    if known is not None:
        return _named_state(unit, known)
    if end is not None:
        holders = _holders(unit, _read(unit, body)) if end["state"] == "taken" else []
        return end | ({"holders": holders} if holders else {})
    ticket = _read(unit, body)
    _release_named(unit, ticket.agent, body)
    ticket.number = rows.next_number(unit)
    if not rows.is_barred(unit.tr, ticket):
        ticket.fence = ticket.number
    elif not _takes_over(unit, ticket):
        if body.get("wait") is False:
            return _end(unit, ticket.id, {"state": "taken"}) | {"holders": _holders(unit, ticket)}
        if cycle := deadlock(unit.tr, ticket):
            return _end(unit, ticket.id, {"state": "deadlock", "cycle": cycle})
    rows.add(unit, ticket)
    _set_timer(unit, ticket, ticket.expires_ms)
    if ticket.fence:
        _say(unit, ticket, "acquired", mode=ticket.mode, reason=ticket.reason)
    return _named_state(unit, ticket)


def _find(unit: UnitOfWork, names: Sequence[str]) -> list[tuple[Ticket | None, dict[str, Any] | None]]:
    """Return for each ticket its lock request, if it holds or waits, and its recorded end, if it has ended."""
    keys = [TICKETS.space.pack((name,)) for name in names]
    found = unit.tr.get_many(keys + [answers.ticket_key(unit.shard, name) for name in names])
    live = [None if row is None else TICKETS.unpack((key, row)) for key, row in zip(keys, found, strict=False)]
    ends = [None if row is None else answers.ticket_end(row) for row in found[len(names) :]]
    return list(zip(live, ends, strict=True))


def _end(unit: UnitOfWork, name: str, answer: dict[str, Any]) -> dict[str, Any]:
    answers.end_ticket(unit.tr, unit.shard, name, answer, now_ms=unit.now_ms)
    return answer


def _release_named(unit: UnitOfWork, agent: str, body: Body) -> None:
    """Release the agent's locks that a new lock request names as released, since their own requests may come later."""
    named = body.get("released")
    known = [name for name in named if is_name(name, LONGEST_LOCK_NAME_BYTES)] if isinstance(named, list) else []
    tickets = list(dict.fromkeys(known))[:MAX_RELEASED]
    for name, (ticket, end) in zip(tickets, _find(unit, tickets), strict=True):
        if ticket is not None and ticket.agent == agent:
            _drop(unit, ticket)
            _grant_next(unit, ticket.resources)
        elif ticket is None and end is None:  # its own request may come later still
            _end(unit, name, {"state": GONE})


def hand_over(unit: UnitOfWork, task: str, before: str, agent: str) -> None:
    """Give a task's held locks, except of concurrency keys, to the agent that took it over, at the same queue places.

    Each gets a new fence and a new id, so its former holder can neither renew nor release it. It is kept for `KEPT_MS`,
    in which the task locks the same resources again and has them at once. A key is its execution's, and stays.
    """
    shard = shard_of(LOCKS_SHARD_KEY, fixed_count(unit.tr) or 1)
    for name in rows.tickets_of_task(unit.tr, before, task):
        ticket = TICKETS.read(unit.tr, name)
        if ticket is None or not ticket.fence or ticket.resources[0].startswith(KEY_LOCKS):
            continue
        rows.remove(unit, ticket)  # its timer stays: it makes the shard of the locks look for the next one
        answers.end_ticket(unit.tr, shard, name, {"state": GONE}, now_ms=unit.now_ms)
        unit.effects.push(ticket.reply_to, ticket.id, {"state": GONE, "reason": f"its task was handed off to {agent}"})
        ticket.id, ticket.agent, ticket.owner, ticket.reply_to = f"{name}+", agent, rows.of_task(task), ""
        ticket.fence, ticket.expires_ms = rows.next_number(unit), unit.now_ms + max(ticket.ttl_ms, KEPT_MS)
        rows.add(unit, ticket)
        _say(unit, ticket, "acquired", mode=ticket.mode, reason=ticket.reason)
        timers.put(unit.tr, shard, Timer("", _timer_name(ticket), LOCK_EXPIRY, ticket.expires_ms))


def _takes_over(unit: UnitOfWork, ticket: Ticket) -> bool:
    """Grant a lock request if only locks that were handed over to its task bar it; tell whether it is granted.

    What was handed over and is not exactly what is asked for is released.
    """
    if not ticket.task:
        return False
    for name in rows.tickets_of(unit.tr, ticket.agent, rows.of_task(ticket.task)):
        handed = TICKETS.read(unit.tr, name)
        if handed is None or not set(handed.resources) & set(ticket.resources):
            continue
        _drop(unit, handed)
        if (handed.resources, handed.mode) == (ticket.resources, ticket.mode):
            ticket.fence, ticket.number = ticket.number, handed.number
            return True
        _grant_next(unit, handed.resources)
    ticket.fence = 0 if rows.is_barred(unit.tr, ticket) else ticket.number
    return ticket.fence > 0


def renew(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Extend a lock request, held or waiting, to its whole time to live from now; return held, waiting, or gone.

    With a `fence` that is not the ticket's, the answer is gone, and nothing is extended.
    """
    ticket = TICKETS.read(unit.tr, text(body, "ticket"))
    if ticket is None or not _is_meant(ticket, body):
        return {"state": GONE}
    ticket.expires_ms = unit.now_ms + ticket.ttl_ms  # its timer finds out when it is due
    TICKETS.write(unit.tr, ticket)
    return _state(unit, ticket)


def release(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Release one lock request (`ticket`), those of an `agent` or its `task`, or, by force, holders of a `resource`.

    With a `fence`, only the holder of that grant.
    At most 200 are released at once. An unknown ticket is released already, or its request comes later and locks
    nothing. The answer has the number of the released tickets, and tells whether there are more.
    """
    if body.get("ticket") is not None:
        found = [text(body, "ticket", longest=LONGEST_LOCK_NAME_BYTES)]
    elif body.get("agent") is not None:
        found = [*rows.tickets_of(unit.tr, text(body, "agent"), limit=MAX_RELEASED)]
    else:
        found = [place.ticket for place in islice(rows.places(unit.tr, text(body, "resource")), MAX_RELEASED)]
    kept = _find(unit, found)
    if kept == [(None, None)]:
        _end(unit, found[0], {"state": GONE})
    tickets = sorted(
        (ticket for ticket, _ in kept if ticket is not None and _is_meant(ticket, body)),
        key=lambda ticket: ticket.number,
    )
    reason = text(body, "reason")[:LONGEST_REASON] if body.get("ticket") is None else ""
    for ticket in tickets:
        _drop(unit, ticket, reason=reason)
    for ticket in tickets:
        _grant_next(unit, ticket.resources)
    return {"released": len(tickets), "more": len(found) == MAX_RELEASED}


def _is_meant(ticket: Ticket, body: Body) -> bool:
    if body.get("resource") is not None and not ticket.fence:
        return False
    return body.get("task") in (None, ticket.task) and body.get("fence") in (None, ticket.fence)


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Remove a lock, or a request for one, that was not renewed in time; if it was renewed, set its timer again.

    A new owner of the shard gives each ticket one full time, in which the ticket's owner can reach it.
    """
    ticket = TICKETS.read(unit.tr, timer.node.partition("/")[2])
    if ticket is None:
        return
    until_ms = max(ticket.expires_ms, unit.policy.since_ms + ticket.ttl_ms)
    if until_ms > unit.now_ms:
        _set_timer(unit, ticket, until_ms)
    else:
        _drop(unit, ticket, reason="its owner has not renewed it in time")
        _grant_next(unit, ticket.resources)


def _grant_next(unit: UnitOfWork, resources: Iterable[str]) -> None:
    """Grant, in order of arrival, waiting lock requests at the given resources that no earlier one bars any more."""
    for resource in resources:
        for place in rows.places(unit.tr, resource):
            ticket = TICKETS.read(unit.tr, place.ticket)
            if ticket is not None and not ticket.fence and not rows.is_barred(unit.tr, ticket):
                ticket.fence = rows.next_number(unit)
                TICKETS.write(unit.tr, ticket)
                unit.effects.push(ticket.reply_to, ticket.id, _state(unit, ticket))
                _say(unit, ticket, "acquired", mode=ticket.mode, reason=ticket.reason)
            counted = rows.most_together(place.mode) is not None
            if place.mode == EXCLUSIVE or (counted and ticket is not None and not ticket.fence):
                break  # it bars all behind it, or they count it as well


def _read(unit: UnitOfWork, body: Body) -> Ticket:
    mode = body.get("mode", EXCLUSIVE)
    if mode not in (SHARED, EXCLUSIVE) and rows.most_together(str(mode)) is None:
        known = [EXCLUSIVE, SHARED, f"{AT_MOST}N"]
        raise InvalidTask("A lock has no such mode", given=str(mode)[:80], known=known)
    shortest, longest = TTL_MS
    ttl_ms = min(max(number(body, "ttl_ms", 10_000), shortest), longest)
    ticket, agent, owner = (text(body, name, longest=LONGEST_LOCK_NAME_BYTES) for name in ("ticket", "agent", "owner"))
    task, reply_to = (text(body, name, "", longest=LONGEST_LOCK_NAME_BYTES) for name in ("task", "reply_to"))
    resources = names(body, "resources", least=1, most=MOST_RESOURCES, longest=LONGEST_LOCK_NAME_BYTES)
    reason, metadata = text(body, "reason", "", longest=LONGEST_REASON), document(body, "metadata")
    if len(versions.LOCK.pack_checked(metadata)) > MOST_METADATA_BYTES:
        raise InvalidTask("The metadata of a lock are too large", most_bytes=MOST_METADATA_BYTES)
    times = unit.now_ms, unit.now_ms + ttl_ms
    return Ticket(ticket, agent, task, owner, mode, sorted(resources), ttl_ms, reply_to, 0, 0, *times, reason, metadata)


def _timer_name(ticket: Ticket) -> str:
    """Return the name of a lock request's timer; timers due at the same time are sorted by their requests' arrival."""
    return f"{ticket.number:016d}/{ticket.id}"


def _set_timer(unit: UnitOfWork, ticket: Ticket, due_ms: int) -> None:
    unit.set_timer(Timer("", _timer_name(ticket), LOCK_EXPIRY, due_ms))


def _drop(unit: UnitOfWork, ticket: Ticket, *, reason: str = "") -> None:
    """Remove a lock request, held or waiting; with a `reason`, also tell its owner, who did not ask for the removal."""
    timers.cancel(unit.tr, "", _timer_name(ticket), LOCK_EXPIRY)
    rows.remove(unit, ticket)
    _end(unit, ticket.id, {"state": GONE})
    if reason:
        unit.effects.push(ticket.reply_to, ticket.id, {"state": GONE, "reason": reason})
        _say(unit, ticket, "lost", reason=reason, lock_reason=ticket.reason)
    elif ticket.fence:
        _say(unit, ticket, "released", reason=ticket.reason)


def _say(unit: UnitOfWork, ticket: Ticket, kind: str, **facts: Any) -> None:
    """Add an event about a lock; the keys of concurrency limits, one for each task, have none but their loss."""
    if kind != "lost" and ticket.resources[0].startswith(KEY_LOCKS):
        return
    known = {"resources": ticket.resources, "agent": ticket.agent, "fence": ticket.fence, "metadata": ticket.metadata}
    unit.effects.say(f"lock.{kind}", ticket.task, **known, **facts)


def _state(unit: UnitOfWork, ticket: Ticket) -> dict[str, Any]:
    left = max(0, ticket.expires_ms - unit.now_ms)
    return {"state": "held" if ticket.fence else "waiting", "fence": ticket.fence, "expires_in_ms": left}


def _named_state(unit: UnitOfWork, ticket: Ticket) -> dict[str, Any]:
    """Return a lock request's state, with the holders if it waits; renewals, which are frequent, do without."""
    return _state(unit, ticket) | ({} if ticket.fence else {"holders": _holders(unit, ticket)})


def _holders(unit: UnitOfWork, ticket: Ticket) -> list[dict[str, Any]]:
    """Return the first holders of the resources of a lock request that has to wait, each with its reason.

    The keys of concurrency limits, for which many tasks wait, cost no reads here.
    """
    if ticket.resources[0].startswith(KEY_LOCKS):
        return []
    places = (
        place
        for resource in ticket.resources
        for place in rows.places(unit.tr, resource, before=ticket.number or None, first=MOST_HOLDERS_NAMED)
    )
    before = [*islice(places, MOST_HOLDERS_NAMED)]
    tickets = TICKETS.read_many(unit.tr, [place.ticket for place in before])
    return [
        {"resource": place.resource} | {name: getattr(holder, name) for name in ("agent", "task", "fence", "reason")}
        for place, holder in zip(before, tickets, strict=True)
        if holder is not None and holder.fence
    ]


def _shard_key(_: Body) -> str:
    return LOCKS_SHARD_KEY


# The search for a deadlock in the wait-for graph of locks, made when a request for locks (a ticket) begins to wait.
#
# A flow of execution waits for every flow that has a place before its ticket's own and bars it. Only a ticket that
# begins to wait adds edges that leave its flow, so a cycle is always closed by the youngest waiter, which is the
# victim.

Flow: TypeAlias = tuple[str, str]
"""A flow of execution, such as one asyncio task: the name of its agent, and its own name."""
MOST_FLOWS = 1_000
"""The number of flows after which the search ends; a longer cycle is left to the time limits of its waits."""


def deadlock(tr: Transaction, ticket: Ticket) -> list[dict[str, str]]:
    """Return the deadlock that a waiting request for locks would cause: who waits for what; empty if none is found.

    Each entry is a flow of execution and its resource. The first flow is the ticket's own; each waits for the next, and
    the last one for the first. The search ends after `MOST_FLOWS`.
    """
    me = (ticket.agent, ticket.owner)
    if not rows.tickets_of(tr, *me, limit=1):  # nobody can wait for a flow that has no place
        return []
    came: dict[Flow, tuple[Flow, str]] = {}
    ahead: deque[tuple[Flow, list[Ticket]]] = deque([(me, [ticket])])
    while ahead and len(came) < MOST_FLOWS:
        flow, waiting = ahead.popleft()
        for place in _waits(tr, waiting):
            if place.flow == me:
                return _links(came, me, flow, place.resource)
            if place.flow not in came:
                came[place.flow] = (flow, place.resource)
                ahead.append((place.flow, _waiting(tr, place.flow)))
    return []


def _waits(tr: Transaction, waiting: list[Ticket]) -> Iterator[Place]:
    for ticket in waiting:
        for resource in ticket.resources:
            before = rows.places(tr, resource, before=ticket.number)
            yield from (place for place in before if place.bars(ticket.mode))


def _waiting(tr: Transaction, flow: Flow) -> list[Ticket]:
    found = (TICKETS.read(tr, ticket) for ticket in rows.tickets_of(tr, *flow))
    return [ticket for ticket in found if ticket is not None and not ticket.fence]


def _links(came: dict[Flow, tuple[Flow, str]], me: Flow, last: Flow, resource: str) -> list[dict[str, str]]:
    links = [_link(last, resource)]
    while last != me:
        last, resource = came[last]
        links.append(_link(last, resource))
    return links[::-1]


def _link(flow: Flow, resource: str) -> dict[str, str]:
    return {"agent": flow[0], "owner": flow[1], "waits_for": resource}


MAX_LOCKS_PAGE = 500


def list_locks(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the lock requests, held or waiting (these with fence 0), at all resources or one `resource`."""
    prefix = (text(body, "resource"),) if body.get("resource") else ()
    places, following = PLACES.page(tr, body, *prefix, max_page=MAX_LOCKS_PAGE)
    tickets = TICKETS.read_many(tr, [place.ticket for place in places])
    shown = [_shown(place, ticket) for place, ticket in zip(places, tickets, strict=True) if ticket is not None]
    return {"locks": shown, "next": following}


def _shown(place: Place, ticket: Ticket) -> dict[str, Any]:
    named = ("mode", "fence", "agent", "task", "begun_ms", "expires_ms", "reason", "metadata")
    state = "held" if ticket.fence else "waiting"
    fields = {name: getattr(ticket, name) for name in named}
    return {"resource": place.resource, "state": state, "ticket": ticket.id} | fields


LOCK_VERBS: Mapping[str, Query | ShardChange] = {
    # the ticket says whether it was done
    Verb.LOCK_ACQUIRE: ShardChange(acquire, _shard_key, deduplicated=False),
    Verb.LOCK_RENEW: ShardChange(renew, _shard_key, deduplicated=False),
    # of a ticket it does nothing twice; by force it would take the lock from the next holder, too
    Verb.LOCK_RELEASE: ShardChange(release, _shard_key, deduplicated=lambda body: "ticket" not in body),
    Verb.LOCK_LIST: Query(list_locks),
}
LOCK_TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = {LOCK_EXPIRY: expired}
