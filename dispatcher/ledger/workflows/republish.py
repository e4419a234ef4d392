"""The rebuild of a shard: published tasks are published again, because the broker may have lost them.

All published nodes of the shard that have not ended are gone over in pages. On another broker, begun attempts are
closed as lost without counting as attempts: the broker failed, not the node. The node runs again, and the results of an
agent that still runs it are refused. On the broker that the shard was built on, begun attempts are left alone, and so
are nodes published so recently that they may run before their report arrives: a node runs twice then only if an agent
began it and its report of the start, `UNTOLD_MS` later, was lost or is still unread. One outcome is recorded.

A shard keeps the *marker* of the broker that it was last built on, and the last publication number that it had given
then: nothing up to that number is with this broker.
"""

from __future__ import annotations

from dataclasses import dataclass

from coditect.errors import NewerVersion
from coditect.wire.json import dumps, loads
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import FLIGHTS, MARKERS, TODO
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.nodes.attempts import BROKER_LOST, UNDER_WAY, write_attempt
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

REBUILD = "rebuild"
MOST_NODES = 200
"""The number of nodes that a transaction publishes again."""
UNTOLD_MS = 3_000
"""The time after its publication for which a node may run without a report: unasked for 1 s, reported 100 ms later.

The rest is for the way: a report that was lost, or lies in a queue for longer, is not waited for.
"""


@dataclass(frozen=True, slots=True)
class Built:
    """The last time that a shard published its nodes again after a loss: the cause, and how many nodes."""

    marker: str = ""
    """The name of the broker's marker queue; empty when the shard was never built."""
    occasion: str = ""
    """The cause of the rebuild: a second request for the same cause changes nothing."""
    last: int = 0
    """The last publication number that was given before the rebuild."""
    published: int = 0
    """The number of nodes published again since then that no agent had begun."""
    working: int = 0
    """The number of nodes published again since then that an agent had begun."""


def built(tr: Reads, shard: int) -> Built:
    """Return the last rebuild of the shard."""
    row = tr.get(MARKERS.pack((shard,)))
    return Built() if row is None else Built(*versions.MARKER.unpack(row))


def left_over(tr: Reads, shard: int) -> bytes | None:
    """Return the cursor of an unfinished rebuild; None when there is none."""
    return tr.get(_key(shard))


def begin(unit: UnitOfWork, marker: str, occasion: str, *, kept: bool = False) -> int:
    """Record the marker, leave the walk to later transactions, and return the last publication number before it.

    A walk over another broker's publications that is not over yet goes on as such: all of them are published again,
    even if this call has `kept`.
    """
    before = built(unit.tr, unit.shard)
    if (before.marker, before.occasion) == (marker, occasion):
        return before.last
    last = unit.last_number()
    unit.tr.set(MARKERS.pack((unit.shard,)), versions.MARKER.pack((marker, occasion, last)))
    unfinished = left_over(unit.tr, unit.shard)
    _leave(unit, last, kept and (unfinished is None or loads(unfinished)[1]), "", "")
    return last


def _key(shard: int) -> bytes:
    return TODO.pack((shard, "", "", REBUILD))


def _leave(unit: UnitOfWork, last: int, kept: bool, workflow: str, node: str) -> None:
    unit.tr.set(_key(unit.shard), dumps([last, kept, workflow, node]))
    unit.effects.unfinished = True


def go_on(unit: UnitOfWork, cursor: bytes) -> int:
    """Publish the next page of nodes of a rebuild again, and return how many nodes were looked at."""
    last, kept, workflow, node = loads(cursor)
    begin_key, end_key = FLIGHTS.range((unit.shard,))
    if workflow:
        begin_key = FLIGHTS.pack((unit.shard, workflow, node)) + b"\0"
    found = unit.tr.get_range(begin_key, end_key, limit=MOST_NODES + 1)
    node_keys = [NodeKey(*FLIGHTS.unpack(key)[1:]) for key, _ in found[:MOST_NODES]]
    count = {TaskState.PUBLISHED: 0, TaskState.WORKING: 0}
    looked = 0
    for node_key in node_keys:
        if looked and unit.is_full:
            break
        looked += 1
        try:
            row = unit.node(node_key)
        except NewerVersion:  # who can read it finds that it is with nobody
            continue
        if row is None or row.state not in UNDER_WAY or row.publication > last or (kept and _may_run(unit, row)):
            continue
        count[row.state] += 1
        publish(unit, node_key, row)
    _add(unit, count[TaskState.PUBLISHED], count[TaskState.WORKING])
    if len(found) > looked:
        _leave(unit, last, kept, node_keys[looked - 1].workflow, node_keys[looked - 1].node)
    return looked


def _add(unit: UnitOfWork, published: int, working: int) -> None:
    """Add to the counts of nodes that the rebuild under way has published again."""
    so_far = built(unit.tr, unit.shard)
    counts = so_far.published + published, so_far.working + working
    row = versions.MARKER.pack((so_far.marker, so_far.occasion, so_far.last, *counts))
    unit.tr.set(MARKERS.pack((unit.shard,)), row)


def _may_run(unit: UnitOfWork, row: NodeRecord) -> bool:
    """Return whether an agent may have begun the node."""
    return row.state is TaskState.WORKING or unit.now_ms - (row.published_ms or 0) < UNTOLD_MS


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Publish a node again whose publication is gone; no attempt is counted."""
    if row.state is TaskState.WORKING:
        write_attempt(unit, node_key, row, "lost", BROKER_LOST)
    claim.publish(unit, node_key, row)
