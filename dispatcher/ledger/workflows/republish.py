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
from dispatcher.ledger.keyspace import CONTINUATIONS, MARKERS, STATUSES
from dispatcher.ledger.nodes import claim
from dispatcher.ledger.nodes.attempts import BROKER_LOST, UNDER_WAY, write_attempt
from dispatcher.ledger.rows import NodeRecord, live_rows, may_be_active
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads

REBUILD = "rebuild"
MAX_REPUBLISHED = 200
"""The largest number of nodes that one transaction of a rebuild publishes again."""
MAX_EXAMINED = 2_000
"""The largest number of nodes whose rows one transaction of a rebuild examines."""


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
    """Publish again the next page of the nodes of a shard that is rebuilt; return how many they are, at least 1."""
    last, workflow, node = loads(cursor)
    published = 0
    for examined, (key, stored) in enumerate(live_rows(unit.tr, unit.shard, (workflow, node)), start=1):
        node_key = NodeKey(*STATUSES.unpack(key))
        published += may_be_active(stored) and _publish_if_lost(unit, node_key, last)
        if unit.is_full or published >= MAX_REPUBLISHED or examined >= MAX_EXAMINED:
            _leave(unit, last, *node_key)
            break
    return max(1, published)


def _publish_if_lost(unit: UnitOfWork, node_key: NodeKey, last: int) -> bool:
    """Publish a node again that a number up to `last` was given to, unless it has ended since; tell whether it was."""
    try:
        row = unit.node(node_key)
    except NewerVersion:  # who can read it finds that it is with nobody
        return False
    if row is None or row.state not in UNDER_WAY or not 0 < row.publication <= last:
        return False
    if row.state is TaskState.WORKING:
        write_attempt(unit, node_key, row, "lost", BROKER_LOST)
    publish(unit, node_key, row)
    return True


def publish(unit: UnitOfWork, node_key: NodeKey, row: NodeRecord) -> None:
    """Publish a node again, and count it for the shard's last rebuild if it was published before the rebuild."""
    since = built(unit.tr, unit.shard)
    if row.publication <= since.last:
        begun = row.state is TaskState.WORKING
        counts = since.published + (not begun), since.working + begun
        head = since.marker, since.occasion, since.last
        unit.tr.set(MARKERS.pack((unit.shard,)), versions.MARKER.pack((*head, *counts)))
    claim.publish(unit, node_key, row)
