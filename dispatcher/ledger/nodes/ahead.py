"""The rows that a batch's transaction is about to read, named to the store ahead of it (`Transaction.read_ahead`).

On FoundationDB each read alone is a round trip, and the report of one node's end makes seven. One wave brings them:
what the batch names, and what releases the node that follows. Of a node that the cache of definitions does not know,
the edges say first which one that is, and a second wave brings the rest. What the report of that node's end will read
is announced for the next transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import EDGES, LEASES, NODES, PUBLISHED, RUNS, STATUSES, VALUES
from dispatcher.ledger.nodes.inputs import INPUT, RESULT, before, has_expressions
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.unit_of_work import MOST_AHEAD, UnitOfWork
from dispatcher.store.transaction import KeyRange


def of_batch(unit: UnitOfWork, lease: Lease, node_keys: Sequence[NodeKey], ending: Sequence[NodeKey]) -> None:
    """Have the store fetch ahead the rows that a batch of commands reads, and the edges from `ending` nodes.

    The rows are those of the batch's nodes, workflows and shard; the edges lead to dependents. Where a single node
    ends, announce also what releases the node that is known to follow it.
    """
    if not node_keys:
        return
    if len(ending) == 1 and not ending[0].is_derived:
        unit.announced = unit.caches.definitions.follower(ending[0])
    limit = MOST_AHEAD + 1
    unit.tr.read_ahead(*_rows(unit, lease, node_keys, ending, unit.announced), limit=limit)
    if unit.announced is not None:
        ended, after = [unit.announced], unit.caches.definitions.follower(unit.announced)
        unit.tr.read_next(*_rows(unit, lease, ended, ended, after), limit=limit)


def _rows(
    unit: UnitOfWork, lease: Lease, node_keys: Sequence[NodeKey], ending: Sequence[NodeKey], follower: NodeKey | None
) -> tuple[Iterator[bytes], Iterator[KeyRange]]:
    return _keys(unit, lease, node_keys, follower), _ranges(ending)


def _keys(unit: UnitOfWork, lease: Lease, node_keys: Sequence[NodeKey], follower: NodeKey | None) -> Iterator[bytes]:
    yield LEASES.pack(lease.name)
    yield PUBLISHED.pack((unit.shard,))
    for workflow in dict.fromkeys(node_key.workflow for node_key in node_keys):
        yield RUNS.pack((workflow,))
    for node_key in node_keys:
        yield STATUSES.pack((node_key.workflow, node_key.node))
    if follower is not None:
        yield from _of_dependent(unit, follower)


def _ranges(ending: Sequence[NodeKey]) -> Iterator[KeyRange]:
    for node_key in ending:
        if not node_key.is_derived:
            yield EDGES.range((node_key.workflow, node_key.node))


def of_dependents(unit: UnitOfWork, node_keys: Collection[NodeKey]) -> None:
    """Read the rows of an ended node's dependents; for a single one, have the store fetch what is needed ahead."""
    if len(node_keys) > 1:
        unit.expect_all(node_keys)
        return
    [node_key] = node_keys
    if node_key != unit.announced and not unit.has_read(node_key):
        unit.tr.read_ahead(_of_dependent(unit, node_key))


def _of_dependent(unit: UnitOfWork, node_key: NodeKey) -> Iterator[bytes]:
    yield STATUSES.pack((node_key.workflow, node_key.node))
    node = unit.caches.definitions.node(node_key)
    if node is None:
        yield NODES.pack((node_key.workflow, node_key.node))
    elif len(node.after) <= MOST_AHEAD and has_expressions(node):
        yield VALUES.pack((node_key.workflow, "", INPUT))
        yield VALUES.pack((node_key.workflow, node_key.node, INPUT))
        for predecessor in before(node, node_key.workflow):
            yield STATUSES.pack((predecessor.workflow, predecessor.node))
            yield VALUES.pack((predecessor.workflow, predecessor.node, RESULT))
