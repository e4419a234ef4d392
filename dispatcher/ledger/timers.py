"""Timers: what is due when, in the order of time, for each shard.

A timer is named by its place (workflow, node, kind): setting it again replaces it. `due` only tells; whoever acts on a
timer calls `finish` in the transaction that acts, so a timer that was cancelled or replaced meanwhile does nothing, and
one that was acted on does nothing again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import DUE, TIMERS
from dispatcher.store.transaction import KeyValue, Reads, Transaction


@dataclass(frozen=True, slots=True)
class Timer:
    """One instant at which something is to be done."""

    workflow: str
    node: str
    """Empty for a timer of the workflow itself."""
    kind: str
    due_ms: int
    """Milliseconds since the epoch; not negative."""
    fence: int = 0
    """Of the attempt that it belongs to; a number that is handed back, no more."""


def put(tr: Transaction, shard: int, timer: Timer) -> None:
    """Sets the timer of this place, whatever was set there before. The shard is its workflow's."""
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
    """Removes the timer of this place; False when there is none."""
    key = TIMERS.pack((workflow, node, kind))
    row = tr.get(key)
    if row is None:
        return False
    tr.clear(key)
    _clear_due(tr, row, workflow, node, kind)
    return True


def cancel_all(tr: Transaction, workflow: str, *, limit: int = 1_000) -> int:
    """Removes timers of a workflow, at most `limit`; how many. Again, until it is less than the limit."""
    found = tr.get_range(*TIMERS.range((workflow,)), limit=limit)
    for key, row in found:
        _, node, kind = TIMERS.unpack(key)
        tr.clear(key)
        _clear_due(tr, row, workflow, node, kind)
    return len(found)


def finish(tr: Transaction, timer: Timer) -> bool:
    """Removes exactly this timer; False when it was finished, cancelled or replaced, and nothing is to be done."""
    if read(tr, timer.workflow, timer.node, timer.kind) != timer:
        return False
    return cancel(tr, timer.workflow, timer.node, timer.kind)


def read(tr: Reads, workflow: str, node: str, kind: str) -> Timer | None:
    """The timer of this place."""
    row = tr.get(TIMERS.pack((workflow, node, kind)))
    if row is None:
        return None
    _, due_ms, fence = versions.TIMER.unpack(row)
    return Timer(workflow, node, kind, due_ms, fence)


def due(tr: Reads, shard: int, now_ms: int, *, limit: int = 100, but: Collection[str] = frozenset()) -> list[Timer]:
    """The first timers of the shard that are due at `now_ms` or before, in the order of time, then of their places.

    Without those of some kinds, however many they are.
    Read by snapshot, or a timer that is set at the same time is a conflict; `finish` guards what is done about it.
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
    """When the shard's first timer behind this instant is due; None when it has none."""
    first = tr.get_range(DUE.pack((shard, after_ms + 1)), DUE.range((shard,))[1], limit=1)
    return _timer(first[0]).due_ms if first else None


def _timer(pair: KeyValue) -> Timer:
    key, value = pair
    _, due_ms, workflow, node, kind = DUE.unpack(key)
    return Timer(workflow, node, kind, due_ms, versions.DUE.unpack(value)[0])


def _clear_due(tr: Transaction, row: bytes, workflow: str, node: str, kind: str) -> None:
    shard, due_ms, _ = versions.TIMER.unpack(row)
    tr.clear(DUE.pack((shard, due_ms, workflow, node, kind)))
