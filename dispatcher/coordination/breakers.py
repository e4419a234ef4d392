"""The fleet's circuit breakers: one process's report opens a breaker for all; one probe an interval may close it.

A breaker has a row from its first trip on, which stays when it closes, so that its versions only grow. While it is
open, each probe interval has one permit: to grant it moves the next one a whole interval away. So a process that dies
with the permit holds up the fleet for one interval at most, and no interval has two probes. Each change is broadcast to
all agents; who misses it learns it with the answer to its next request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coditect.model.limits import LONGEST_RESET_SECONDS, MAX_BREAKER_NAME_BYTES, BreakerState
from coditect.wire import control_messages, routing
from coditect.wire.control import Verb
from dispatcher.coordination.table import Table
from dispatcher.ledger import keyspace, versions
from dispatcher.ledger.effects import OutgoingMessage
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import number, text
from dispatcher.store.transaction import Reads

MOST_TEXT = 500
MAX_BREAKERS_PAGE = 500
DEFAULT_RESET_MS = 30_000


@dataclass(slots=True)
class BreakerRow:
    """The row of a fleet-wide circuit breaker in the store; a breaker without a row is closed."""

    name: str
    open: bool = False
    version: int = 0
    opened: int = 0
    """The version with which the breaker opened: a probe that was permitted under an older version decides nothing."""
    permit: int = 0
    """The version with which the last probe was permitted."""
    due_ms: int | None = None
    """When the next probe may be permitted; None while an operator holds the breaker open."""
    reset_ms: int = DEFAULT_RESET_MS
    reason: str = ""
    by: str = ""
    since_ms: int = 0

    def state(self, now_ms: int) -> BreakerState:
        """Return the breaker's state in the form that messages carry, without a permit for a probe call."""
        wait = None if self.due_ms is None else max(0, self.due_ms - now_ms)
        return BreakerState(self.name, self.open, self.version, wait, self.reason, self.by, self.since_ms)


BREAKERS = Table(keyspace.BREAKERS, versions.BREAKER_ROW, BreakerRow)


def trip(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Open a breaker that an agent or client reports as tripped, and return its state; an open one stays as it is."""
    row = _read(unit, body)
    if row.open:
        return row.state(unit.now_ms).as_json()
    row.reset_ms = min(number(body, "reset_ms", DEFAULT_RESET_MS), round(1000 * LONGEST_RESET_SECONDS))
    return _open(unit, row, body, due_ms=unit.now_ms + row.reset_ms)


def permit(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Permit the asking process a probe of an open breaker, one an interval at most; return state and any permit."""
    row = _read(unit, body)
    if not row.open or row.due_ms is None or row.due_ms > unit.now_ms:
        return row.state(unit.now_ms).as_json()
    row.due_ms = unit.now_ms + row.reset_ms
    row.permit = _advance(unit, row)
    return _write(unit, row) | {"permit": row.permit}


def decide(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Close a breaker if a permitted probe call succeeded; if the last permitted one failed, wait another interval."""
    row = _read(unit, body)
    permitted, succeeded = number(body, "permit", 0), body.get("succeeded") is True
    if row.open and row.due_ms is not None and permitted > row.opened:
        if succeeded:
            return _close(unit, row, body)
        if permitted == row.permit:
            row.due_ms = unit.now_ms + row.reset_ms
            _advance(unit, row)
            return _write(unit, row)
    return row.state(unit.now_ms).as_json()


def hold(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Open a breaker by an operator's order, without probes until `reset`."""
    return _open(unit, _read(unit, body), body, due_ms=None)


def reset(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Close a breaker by an operator's order, also in agents that opened it themselves without the control plane."""
    return _close(unit, _read(unit, body), body)


def list_breakers(tr: Reads, body: Body) -> dict[str, Any]:
    """Return a page of the breakers ever opened or reset; `name` selects one of them, and `open` only the open ones."""
    if body.get("name"):
        row, following = BREAKERS.read(tr, text(body, "name")), None
        found = [] if row is None else [row]
    else:
        found, following = BREAKERS.page(tr, body, max_page=MAX_BREAKERS_PAGE)
    shown = [
        # a query knows no clock: the next probe is due within an interval
        row.state((row.due_ms or 0) - row.reset_ms).as_json() | {"due_ms": row.due_ms, "reset_ms": row.reset_ms}
        for row in found
        if row.open or not body.get("open")
    ]
    return {"breakers": shown, "next": following}


def _read(unit: UnitOfWork, body: Body) -> BreakerRow:
    name = text(body, "name", longest=MAX_BREAKER_NAME_BYTES)
    return BREAKERS.read(unit.tr, name) or BreakerRow(name)


def _open(unit: UnitOfWork, row: BreakerRow, body: Body, *, due_ms: int | None) -> dict[str, Any]:
    row.opened = _advance(unit, row)
    return _turn(unit, row, body, opens=True, due_ms=due_ms)


def _close(unit: UnitOfWork, row: BreakerRow, body: Body) -> dict[str, Any]:
    _advance(unit, row)
    return _turn(unit, row, body, opens=False, due_ms=None)


def _turn(unit: UnitOfWork, row: BreakerRow, body: Body, *, opens: bool, due_ms: int | None) -> dict[str, Any]:
    row.open, row.due_ms, row.since_ms = opens, due_ms, unit.now_ms
    row.reason, row.by = (str(body.get(name) or "")[:MOST_TEXT] for name in ("reason", "by"))
    return _write(unit, row)


def _advance(unit: UnitOfWork, row: BreakerRow) -> int:
    """Increase the row's version, at least to the present time in milliseconds, and return it.

    So it is above every version that agents know, even after a restore of the store.
    """
    row.version = max(row.version + 1, unit.now_ms)
    return row.version


def _write(unit: UnitOfWork, row: BreakerRow) -> dict[str, Any]:
    """Write a breaker, tell all agents of it, and return its state."""
    BREAKERS.write(unit.tr, row)
    state = row.state(unit.now_ms).as_json()
    message = control_messages.message(control_messages.BREAKER_NEWS, state)
    unit.effects.messages.append(OutgoingMessage(message, routing.BROADCAST, ""))
    facts = {field: value for field, value in state.items() if field != "name"}
    unit.effects.say("breaker.opened" if row.open else "breaker.closed", row.name, **facts)
    return state


def _shard_key(body: Body) -> str:
    return f"breaker:{text(body, 'name')}"


BREAKER_VERBS: Mapping[str, Query | ShardChange] = {
    Verb.BREAKER_TRIP: ShardChange(trip, _shard_key),
    Verb.BREAKER_PERMIT: ShardChange(permit, _shard_key),
    Verb.BREAKER_DECIDE: ShardChange(decide, _shard_key),
    Verb.BREAKER_HOLD: ShardChange(hold, _shard_key),
    Verb.BREAKER_RESET: ShardChange(reset, _shard_key),
    Verb.BREAKER_LIST: Query(list_breakers),
}
