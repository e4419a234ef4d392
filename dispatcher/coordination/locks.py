"""The locks of agents and clients: who holds which resource, under which fencing token, until when.

All locks are in one shard, so its batches serialise them. A ticket has one place in the queue of each of its resources.
It is granted when no place before it bars it, so tickets are granted in order of arrival, and several resources in one
step. The fence of a grant is the next number of one counter that only grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from coditect.errors import InvalidTask
from coditect.wire.control import Verb
from dispatcher.coordination import lock_rows as rows
from dispatcher.coordination.lock_rows import EXCLUSIVE, SHARED, Ticket
from dispatcher.ledger import timers
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number, text

EXPIRY = "lock.expiry"
MOST_RESOURCES = 32
LONGEST_NAME_BYTES = 500
TTL_MS = (1_000, 3_600_000)
"""The shortest and the longest time after which a ticket that is not renewed is gone, in milliseconds."""


def acquire(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Lock resources under a ticket that the client names; a repeated request gets the ticket's present state."""
    known = rows.read(unit.tr, text(body, "ticket"))
    if known is not None:
        return _state(unit, known)
    ticket = _read(unit, body)
    if _is_barred(unit, ticket):
        return {"state": "taken"}
    ticket.number = ticket.fence = rows.next_number(unit)
    rows.add(unit, ticket)
    _set_timer(unit, ticket)
    return _state(unit, ticket)


def release(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Release a ticket; an unknown one is released already."""
    ticket = rows.read(unit.tr, text(body, "ticket"))
    if ticket is not None:
        _drop(unit, ticket)
    return {"released": ticket is not None}


def expired(unit: UnitOfWork, timer: Timer) -> None:
    """Remove a ticket that its owner has not renewed in time, or wait for the time to which it was renewed."""
    ticket = rows.read(unit.tr, timer.node)
    if ticket is None:
        return
    if ticket.expires_ms > unit.now_ms:
        _set_timer(unit, ticket)
    else:
        _drop(unit, ticket)


def _read(unit: UnitOfWork, body: Body) -> Ticket:
    mode = body.get("mode", EXCLUSIVE)
    if mode not in (SHARED, EXCLUSIVE):
        raise InvalidTask("A lock has no such mode", given=str(mode)[:80], known=[EXCLUSIVE, SHARED])
    shortest, longest = TTL_MS
    ttl_ms = min(max(number(body, "ttl_ms", 10_000), shortest), longest)
    names = {name: text(body, name) for name in ("ticket", "agent", "task", "owner")}
    if any(len(name.encode(errors="surrogatepass")) > LONGEST_NAME_BYTES for name in names.values()):
        raise InvalidTask("A name in the request is too long", limit=LONGEST_NAME_BYTES)
    ticket, agent, task, owner = names.values()
    reply_to, resources = str(body.get("reply_to") or ""), _resources(body)
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
    return isinstance(one, str) and 0 < len(one.encode(errors="surrogatepass")) <= LONGEST_NAME_BYTES


def _is_barred(unit: UnitOfWork, ticket: Ticket) -> bool:
    """Tell whether a ticket has to wait for another that came before it."""
    before = ticket.number or None
    limit = 1 if ticket.mode == EXCLUSIVE else 0
    found = (place for of in ticket.resources for place in rows.places(unit.tr, of, before=before, limit=limit))
    return any(place.bars(ticket.mode) for place in found)


def _set_timer(unit: UnitOfWork, ticket: Ticket) -> None:
    timers.put(unit.tr, unit.shard, Timer("", ticket.id, EXPIRY, ticket.expires_ms))
    unit.effects.timers = True


def _drop(unit: UnitOfWork, ticket: Ticket) -> None:
    timers.cancel(unit.tr, "", ticket.id, EXPIRY)
    rows.remove(unit, ticket)


def _state(unit: UnitOfWork, ticket: Ticket) -> dict[str, Any]:
    left = max(0, ticket.expires_ms - unit.now_ms)
    return {"state": "held" if ticket.fence else "waiting", "fence": ticket.fence, "expires_in_ms": left}


def _shard_key(_: Body) -> str:
    return "lock"


VERBS: Mapping[str, Query | ShardChange] = MappingProxyType(
    {
        # the ticket says whether it was done
        Verb.LOCK_ACQUIRE: ShardChange(acquire, _shard_key, deduplicated=False),
        Verb.LOCK_RELEASE: ShardChange(release, _shard_key, deduplicated=False),
    }
)
TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = MappingProxyType({EXPIRY: expired})
