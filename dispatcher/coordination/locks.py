"""Locks on named resources for agents and clients: exclusive, shared or for at most N, queued in order.

All locks are in one shard, so its batches serialise them. A ticket has one place in the queue of each of its resources.
It is granted when no place before it bars it, so tickets are granted in order of arrival, and several resources in one
step. The fence of a grant is the next number of one counter that only grows.

A ticket lives once. Whether it was released, expired, refused or handed over: a request that arrives late or again gets
the end of the ticket as its answer, and locks nothing. That holds for a ticket that is released before it arrives, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

from coditect.errors import InvalidTask
from coditect.model.limits.concurrency import KEY_LOCKS
from coditect.model.result import Outcome, Status
from coditect.wire.control import Verb
from coditect.wire.json import dumps
from coditect.wire.routing import reply_address
from coditect.wire.tasks import result_message
from dispatcher.coordination import deadlocks
from dispatcher.coordination import lock_rows as rows
from dispatcher.coordination.lock_queries import list_locks
from dispatcher.coordination.lock_rows import AT_MOST, EXCLUSIVE, SHARED, Ticket
from dispatcher.ledger import answers, timers
from dispatcher.ledger.effects import OutgoingMessage
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.ownership.shards import LOCKS_SHARD_KEY, fixed_count, shard_of
from dispatcher.ledger.timers import LOCK_EXPIRY, Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import is_name, number, text

MOST_RESOURCES = 32
LONGEST_NAME_BYTES = 500
LONGEST_REASON = 500
KEPT_MS = 60_000
"""How long a lock handed over with its task is kept at least, so that the task can lock its resources again."""
MOST_AT_ONCE = 200
"""The number of tickets that one request releases at most."""
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
        return _state(unit, known)
    if end is not None:
        return end
    ticket = _read(unit, body)
    _release_named(unit, ticket.agent, body)
    ticket.number = rows.next_number(unit)
    if not rows.is_barred(unit.tr, ticket):
        ticket.fence = ticket.number
    elif not _takes_over(unit, ticket):
        if body.get("wait") is False:
            return _end(unit, ticket.id, {"state": "taken"})
        if cycle := deadlocks.cycle(unit.tr, ticket):
            return _end(unit, ticket.id, {"state": "deadlock", "cycle": cycle})
    rows.add(unit, ticket)
    _set_timer(unit, ticket, ticket.expires_ms)
    return _state(unit, ticket)


def _find(unit: UnitOfWork, names: Sequence[str]) -> list[tuple[Ticket | None, dict[str, Any] | None]]:
    """Return for each ticket its lock request, if it holds or waits, and its recorded end, if it has ended."""
    keys = [rows.ticket_key(name) for name in names] + [answers.ticket_key(unit.shard, name) for name in names]
    found = unit.tr.get_many(keys)
    live = [None if row is None else rows.unpack(name, row) for name, row in zip(names, found, strict=False)]
    ends = [None if row is None else answers.ticket_end(row) for row in found[len(names) :]]
    return list(zip(live, ends, strict=True))


def _end(unit: UnitOfWork, name: str, answer: dict[str, Any]) -> dict[str, Any]:
    answers.end_ticket(unit.tr, unit.shard, name, answer, now_ms=unit.now_ms)
    return answer


def _release_named(unit: UnitOfWork, agent: str, body: Body) -> None:
    """Release the agent's locks that a new lock request names as released, since their own requests may come later."""
    named = body.get("released")
    names = list(dict.fromkeys(filter(_is_name, named if isinstance(named, list) else ())))[:MOST_AT_ONCE]
    for name, (ticket, end) in zip(names, _find(unit, names), strict=True):
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
        ticket = rows.read(unit.tr, name)
        if ticket is None or not ticket.fence or ticket.resources[0].startswith(KEY_LOCKS):
            continue
        rows.remove(unit, ticket)  # its timer stays: it makes the shard of the locks look for the next one
        answers.end_ticket(unit.tr, shard, name, {"state": GONE}, now_ms=unit.now_ms)
        _push(unit, ticket, {"state": GONE, "reason": f"its task was handed off to {agent}"})
        ticket.id, ticket.agent, ticket.owner, ticket.reply_to = f"{name}+", agent, rows.of_task(task), ""
        ticket.fence, ticket.expires_ms = rows.next_number(unit), unit.now_ms + max(ticket.ttl_ms, KEPT_MS)
        rows.add(unit, ticket)
        timers.put(unit.tr, shard, Timer("", _timer_name(ticket), LOCK_EXPIRY, ticket.expires_ms))


def _takes_over(unit: UnitOfWork, ticket: Ticket) -> bool:
    """Grant a lock request if only locks that were handed over to its task bar it; tell whether it is granted.

    What was handed over and is not exactly what is asked for is released.
    """
    if not ticket.task:
        return False
    for name in rows.tickets_of(unit.tr, ticket.agent, rows.of_task(ticket.task)):
        handed = rows.read(unit.tr, name)
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
    """Extend a lock request, held or waiting, to its whole time to live from now; return held, waiting, or gone."""
    ticket = rows.read(unit.tr, text(body, "ticket"))
    if ticket is None:
        return {"state": GONE}
    ticket.expires_ms = unit.now_ms + ticket.ttl_ms  # its timer finds out when it is due
    rows.write(unit, ticket)
    return _state(unit, ticket)


def release(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Release one lock request (`ticket`), those of an `agent` or its `task`, or, by force, holders of a `resource`.

    At most 200 are released at once. An unknown ticket is released already, or its request comes later and locks
    nothing. The answer has the number of the released tickets, and tells whether there are more.
    """
    if body.get("ticket") is not None:
        found = [text(body, "ticket", longest=LONGEST_NAME_BYTES)]
        if _find(unit, found) == [(None, None)]:
            _end(unit, found[0], {"state": GONE})
    elif body.get("agent") is not None:
        found = [*rows.tickets_of(unit.tr, text(body, "agent"), limit=MOST_AT_ONCE)]
    else:
        found = [place.ticket for place in islice(rows.places(unit.tr, text(body, "resource")), MOST_AT_ONCE)]
    kept = (rows.read(unit.tr, ticket) for ticket in found)
    tickets = sorted((one for one in kept if one is not None and _is_meant(one, body)), key=lambda one: one.number)
    reason = text(body, "reason")[:LONGEST_REASON] if body.get("ticket") is None else ""
    for ticket in tickets:
        _drop(unit, ticket, reason=reason)
    for ticket in tickets:
        _grant_next(unit, ticket.resources)
    return {"released": len(tickets), "more": len(found) == MOST_AT_ONCE}


def _is_meant(ticket: Ticket, body: Body) -> bool:
    if body.get("resource") is not None and not ticket.fence:
        return False
    return body.get("task") in (None, ticket.task)


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Remove a lock, or a request for one, that was not renewed in time; if it was renewed, set its timer again.

    A new owner of the shard gives each ticket one full time, in which the ticket's owner can reach it.
    """
    ticket = rows.read(unit.tr, timer.node.partition("/")[2])
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
            ticket = rows.read(unit.tr, place.ticket)
            if ticket is not None and not ticket.fence and not rows.is_barred(unit.tr, ticket):
                ticket.fence = rows.next_number(unit)
                rows.write(unit, ticket)
                _push(unit, ticket, _state(unit, ticket))
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
    ticket, agent, owner = (text(body, name) for name in ("ticket", "agent", "owner"))
    task, reply_to = (str(body.get(name) or "") for name in ("task", "reply_to"))
    if not all(map(_is_name, (ticket, agent, owner, task or "-", reply_to or "-"))):
        raise InvalidTask("A name in the request is too long", limit=LONGEST_NAME_BYTES)
    resources = _resources(body)
    until = unit.now_ms + ttl_ms
    return Ticket(ticket, agent, task, owner, mode, resources, ttl_ms, reply_to, 0, 0, unit.now_ms, until)


def _resources(body: Body) -> list[str]:
    named = body.get("resources")
    if not isinstance(named, list) or not 1 <= len(named) <= MOST_RESOURCES or not all(map(_is_name, named)):
        raise InvalidTask(
            "A lock needs a list of resources",
            field="resources",
            fix=f"name 1 to {MOST_RESOURCES} resources, each of at most {LONGEST_NAME_BYTES} bytes",
        )
    return sorted(set(named))


def _is_name(one: object) -> bool:
    return is_name(one, LONGEST_NAME_BYTES)


def _timer_name(ticket: Ticket) -> str:
    """Return the name of a lock request's timer; timers due at the same time are sorted by their requests' arrival."""
    return f"{ticket.number:016d}/{ticket.id}"


def _set_timer(unit: UnitOfWork, ticket: Ticket, due_ms: int) -> None:
    timers.put(unit.tr, unit.shard, Timer("", _timer_name(ticket), LOCK_EXPIRY, due_ms))
    unit.effects.timers = True


def _drop(unit: UnitOfWork, ticket: Ticket, *, reason: str = "") -> None:
    """Remove a lock request, held or waiting; with a `reason`, also tell its owner, who did not ask for the removal."""
    timers.cancel(unit.tr, "", _timer_name(ticket), LOCK_EXPIRY)
    rows.remove(unit, ticket)
    _end(unit, ticket.id, {"state": GONE})
    if reason:
        _push(unit, ticket, {"state": GONE, "reason": reason})
        facts = {"resources": ticket.resources, "agent": ticket.agent, "fence": ticket.fence, "reason": reason}
        unit.effects.say("lock.lost", ticket.task, **facts)


def _push(unit: UnitOfWork, ticket: Ticket, state: dict[str, Any]) -> None:
    """Tell a lock request's owner its state after the commit; if the message is lost, the next renewal tells it."""
    outcome = Outcome(Status.COMPLETED, dumps(state), None, ticket.id)
    address = reply_address(ticket.reply_to)
    if address is not None and address.exchange:
        message = result_message(outcome, capability="control")
        unit.effects.messages.append(OutgoingMessage(message, address.exchange, address.routing_key))


def _state(unit: UnitOfWork, ticket: Ticket) -> dict[str, Any]:
    left = max(0, ticket.expires_ms - unit.now_ms)
    return {"state": "held" if ticket.fence else "waiting", "fence": ticket.fence, "expires_in_ms": left}


def _shard_key(_: Body) -> str:
    return LOCKS_SHARD_KEY


VERBS: Mapping[str, Query | ShardChange] = MappingProxyType(
    {
        # the ticket says whether it was done
        Verb.LOCK_ACQUIRE: ShardChange(acquire, _shard_key, deduplicated=False),
        Verb.LOCK_RENEW: ShardChange(renew, _shard_key, deduplicated=False),
        # of a ticket it does nothing twice; by force it would take the lock from the next holder, too
        Verb.LOCK_RELEASE: ShardChange(release, _shard_key, deduplicated=lambda body: "ticket" not in body),
        Verb.LOCK_LIST: Query(list_locks),
    }
)
TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = MappingProxyType({LOCK_EXPIRY: expired})
