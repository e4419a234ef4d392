"""Anew: what was published is published again, because the broker that had it may not be there any more.

Everything of the shard that is published and has not ended is gone over in pages. When the broker is another, what an
agent had begun is closed as lost, and that is no attempt of the node's: the broker failed, not the node. It runs again,
and what an agent that still runs it tells is late. When the broker is the one that the shard was built on, what was
begun is left alone, and so is what was published so short a time ago that it may run untold: what runs twice then is
only what an agent began and whose start, `UNTOLD_MS` later, was lost or has not been read yet. One outcome is recorded.

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
"""That one transaction publishes anew."""
UNTOLD_MS = 3_000
"""For so long after its publication a node may run while nobody told: unasked for 1 s, told 100 ms after its start.

The rest is for the way: a start that was lost, or lies in a queue for longer, is not waited for.
"""


@dataclass(frozen=True, slots=True)
class Built:
    """What a shard was last built on."""

    marker: str = ""
    """Name of the queue; empty when it never was."""
    occasion: str = ""
    """What asked for it: the same again asks for nothing."""
    last: int = 0
    """The last publication number that was given before."""
    published: int = 0
    """Nodes that nobody had begun and that were published anew since."""
    working: int = 0
    """The same of those that were begun."""


def built(tr: Reads, shard: int) -> Built:
    """What the shard was last built on."""
    row = tr.get(MARKERS.pack((shard,)))
    return Built() if row is None else Built(*versions.MARKER.unpack(row))


def left_over(tr: Reads, shard: int) -> bytes | None:
    """Where a walk is that is not over."""
    return tr.get(_key(shard))


def begin(unit: UnitOfWork, marker: str, occasion: str, *, kept: bool = False) -> int:
    """Records the marker and leaves the walk to later transactions; the last publication number before it.

    A walk that is not over yet goes on with this one: what another broker had is published anew, whoever asks.
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
    """Publishes the next page; how many nodes it looked at."""
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
    """To what was published anew since the walk began."""
    so_far = built(unit.tr, unit.shard)
    counts = so_far.published + published, so_far.working + working
    row = versions.MARKER.pack((so_far.marker, so_far.occasion, so_far.last, *counts))
    unit.tr.set(MARKERS.pack((unit.shard,)), row)


def _may_run(unit: UnitOfWork, row: NodeRecord) -> bool:
    """Whether an agent may have begun it."""
    return row.state is TaskState.WORKING or unit.now_ms - (row.published_ms or 0) < UNTOLD_MS


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Publishes a node anew whose publication is gone; no attempt is counted."""
    if row.state is TaskState.WORKING:
        write_attempt(unit, node_key, row, "lost", BROKER_LOST)
    claim.publish(unit, node_key, row)
