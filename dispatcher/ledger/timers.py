"""The timers of nodes, locks, threads, handoffs and schedules, which each shard reads in the order of their instants.

A timer is named by its place (workflow, node, kind): setting it again replaces it. `due` only reads; a caller that acts
on a timer calls `finish` in the transaction that acts, so a timer that was cancelled, replaced or already acted on has
no effect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import DUE, TIMERS
from dispatcher.store.transaction import KeyValue, Reads, Transaction

LOCK_EXPIRY = "lock.expiry"
"""The kind of the timer that ends a lock's ticket which is not renewed in time; held back like timers of attempts."""


@dataclass(frozen=True, slots=True)
class Timer:
    """An instant at which a node, lock, thread, handoff or schedule needs work, such as the end of a retry delay."""

    workflow: str
    node: str
    """The node's name; empty for a timer of the workflow itself."""
    kind: str
    due_ms: int
    """The instant in milliseconds since the epoch; not negative."""
    fence: int = 0
    """The fence of the attempt that the timer belongs to; this module only stores and returns it."""


def put(tr: Transaction, shard: int, timer: Timer) -> None:
    """Store a timer for a shard, in place of an earlier one with the same workflow, node and kind."""
    key = TIMERS.pack((timer.workflow, timer.node, timer.kind))
    row = versions.TIMER.pack((shard, timer.due_ms, timer.fence))
    before = tr.get(key)
    if before == row:
        return
    if before is not None:
        _clear_due(tr, before, timer.workflow, timer.node, timer.kind)
    tr.set(key, row)
    tr.set(DUE.pack((shard, timer.due_ms, timer.workflow, timer.node, timer.kind)), versions.DUE.pack((timer.fence,)))


def cancel(tr: Transaction, workflow: str, node: str, kind: str) -> bool:
    """Remove the timer with the given workflow, node and kind; return False when there is none."""
    key = TIMERS.pack((workflow, node, kind))
    row = tr.get(key)
    if row is None:
        return False
    tr.clear(key)
    _clear_due(tr, row, workflow, node, kind)
    return True


def cancel_all(tr: Transaction, workflow: str, *, limit: int = 1_000) -> int:
    """Remove at most `limit` timers of a workflow and its nodes, and return how many were removed.

    Call again until the number is below the limit.
    """
    found = tr.get_range(*TIMERS.range((workflow,)), limit=limit)
    for key, row in found:
        _, node, kind = TIMERS.unpack(key)
        tr.clear(key)
        _clear_due(tr, row, workflow, node, kind)
    return len(found)


def finish(tr: Transaction, timer: Timer) -> bool:
    """Remove a timer that is still stored exactly as given; return False, and change nothing, when it is not."""
    if read(tr, timer.workflow, timer.node, timer.kind) != timer:
        return False
    return cancel(tr, timer.workflow, timer.node, timer.kind)


def read(tr: Reads, workflow: str, node: str, kind: str) -> Timer | None:
    """Return the timer with the given workflow, node and kind; None when there is none."""
    row = tr.get(TIMERS.pack((workflow, node, kind)))
    if row is None:
        return None
    _, due_ms, fence = versions.TIMER.unpack(row)
    return Timer(workflow, node, kind, due_ms, fence)


def due(tr: Reads, shard: int, now_ms: int, *, limit: int = 100, but: Collection[str] = frozenset()) -> list[Timer]:
    """Return the shard's first `limit` timers due at `now_ms` or before, by due time, without the kinds in `but`.

    Timers of the kinds in `but` are left out, however many they are. Read by snapshot, or a timer that is set at the
    same time is a conflict; `finish` guards the action.
    """
    begin, end = DUE.range((shard,))[0], DUE.pack((shard, now_ms + 1))
    found: list[Timer] = []
    while len(found) < limit:
        rows = tr.get_range(begin, end, limit=limit)
        found += (timer for timer in map(_timer, rows) if timer.kind not in but)
        if len(rows) < limit:
            break
        begin = rows[-1][0] + b"\0"
    return found[:limit]


def next_due_ms(tr: Reads, shard: int, *, after_ms: int = -1) -> int | None:
    """Return the due time of the shard's first timer after `after_ms`; None when there is no such timer."""
    first = tr.get_range(DUE.pack((shard, after_ms + 1)), DUE.range((shard,))[1], limit=1)
    return _timer(first[0]).due_ms if first else None


def _timer(pair: KeyValue) -> Timer:
    key, value = pair
    _, due_ms, workflow, node, kind = DUE.unpack(key)
    return Timer(workflow, node, kind, due_ms, versions.DUE.unpack(value)[0])


def _clear_due(tr: Transaction, row: bytes, workflow: str, node: str, kind: str) -> None:
    shard, due_ms, _ = versions.TIMER.unpack(row)
    tr.clear(DUE.pack((shard, due_ms, workflow, node, kind)))
