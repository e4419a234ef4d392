"""The rebuild of a shard: tasks that were published to a broker which lost its data are published again.

A shard keeps the *marker* of the broker that it was last built on, and the last publication number that it had given
then. On another broker nothing up to that number is there: all published nodes of the shard that have not ended are
gone over in pages, and begun attempts are closed as lost without counting as attempts, because the broker failed, not
the node. The node runs again, and the results of an agent that still runs it are refused. One outcome is recorded.

On the broker that the shard was built on, the number only says what is doubted: `dispatcher.shards.in_flight` decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from coditect.errors import NewerVersion
from coditect.wire.json import dumps, loads
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import CONTINUATIONS, FLIGHTS, MARKERS
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.nodes.attempts import BROKER_LOST, UNDER_WAY, write_attempt
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

REBUILD = "rebuild"
MAX_REPUBLISHED = 200
"""The largest number of nodes that one transaction of a rebuild publishes again."""


@dataclass(frozen=True, slots=True)
class Built:
    """The record of a shard's last rebuild, which published tasks again: broker marker, cause, and counts of nodes."""

    marker: str = ""
    """The name of the marker queue at the broker; empty when the shard has not been built on any broker."""
    occasion: str = ""
    """The cause of the rebuild; a second rebuild for the same marker and cause changes nothing."""
    last: int = 0
    """The last publication number that the shard had given before the rebuild."""
    published: int = 0
    """The number of nodes published again since the rebuild that no agent had begun."""
    working: int = 0
    """The number of nodes published again since the rebuild that an agent had begun."""


def built(tr: Reads, shard: int) -> Built:
    """Return the record of a shard's last rebuild, which published tasks again; an empty record when there was none."""
    row = tr.get(MARKERS.pack((shard,)))
    return Built() if row is None else Built(*versions.MARKER.unpack(row))


def left_over(tr: Reads, shard: int) -> bytes | None:
    """Return where a shard's unfinished rebuild is to go on to publish tasks again; None when none is unfinished."""
    return tr.get(_key(shard))


def begin(unit: UnitOfWork, marker: str, occasion: str, *, kept: bool = False) -> int:
    """Record a shard's rebuild and begin to publish its tasks again, unless the last one had the same marker and cause.

    Return the last publication number before the rebuild. The marker is the queue by whose absence a broker's loss of
    data is noticed.

    Unless the broker was `kept`, later transactions publish all earlier publications again; an unfinished rebuild for
    another broker goes on in any case.
    """
    before = built(unit.tr, unit.shard)
    if (before.marker, before.occasion) == (marker, occasion):
        return before.last
    last = unit.last_number()
    unit.tr.set(MARKERS.pack((unit.shard,)), versions.MARKER.pack((marker, occasion, last)))
    if not kept:
        _leave(unit, last, "", "")
    return last


def _key(shard: int) -> bytes:
    return CONTINUATIONS.pack((shard, "", "", REBUILD))


def _leave(unit: UnitOfWork, last: int, workflow: str, node: str) -> None:
    unit.tr.set(_key(unit.shard), dumps([last, workflow, node]))
    unit.effects.unfinished = True


def go_on(unit: UnitOfWork, cursor: bytes) -> int:
    """Publish again the next page of the nodes of a shard that is rebuilt, and return how many nodes were examined."""
    last, workflow, node = loads(cursor)
    found = unit.tr.get_range(*FLIGHTS.behind((unit.shard,), (workflow, node)), limit=MAX_REPUBLISHED + 1)
    node_keys = [NodeKey(*FLIGHTS.unpack(key)[1:]) for key, _ in found[:MAX_REPUBLISHED]]
    looked = 0
    for node_key in node_keys:
        if looked and unit.is_full:
            break
        looked += 1
        try:
            row = unit.node(node_key)
        except NewerVersion:  # who can read it finds that it is with nobody
            continue
        if row is None or row.state not in UNDER_WAY or row.publication > last:
            continue
        if row.state is TaskState.WORKING:
            write_attempt(unit, node_key, row, "lost", BROKER_LOST)
        publish(unit, node_key, row)
    if len(found) > looked:
        _leave(unit, last, node_keys[looked - 1].workflow, node_keys[looked - 1].node)
    return looked


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Publish a node again, and count it for the shard's last rebuild if it was published before the rebuild."""
    since = built(unit.tr, unit.shard)
    if row.publication <= since.last:
        begun = row.state is TaskState.WORKING
        counts = since.published + (not begun), since.working + begun
        head = since.marker, since.occasion, since.last
        unit.tr.set(MARKERS.pack((unit.shard,)), versions.MARKER.pack((*head, *counts)))
    claim.publish(unit, node_key, row)
