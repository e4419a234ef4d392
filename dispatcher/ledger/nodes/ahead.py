"""What a batch's transaction is about to read, announced to the store at once (`Transaction.read_ahead`).

On FoundationDB each read alone is a round trip, and the report of one node's end makes seven. Two waves bring them:
what the batch names, and, once the edges say which one it is, what releases a dependent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import EDGES, LEASES, NODES, PUBLISHED, READY, RUNS, STATUSES, VALUES
from dispatcher.ledger.nodes.inputs import INPUT, RESULT, before, has_expressions
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.unit_of_work import MOST_AHEAD, UnitOfWork
from dispatcher.store.transaction import KeyRange, Transaction


def of_batch(
    tr: Transaction, lease: Lease, shard: int, node_keys: Sequence[NodeKey], ending: Sequence[NodeKey]
) -> None:
    """Announce the rows of a batch's nodes, their workflows and the shard, and the edges of the `ending` nodes."""
    if node_keys:
        edges = (EDGES.range((node_key.workflow, node_key.node)) for node_key in ending if not node_key.is_derived)
        tr.read_ahead(_of_nodes(lease, shard, node_keys), edges, limit=MOST_AHEAD + 1)


def _of_nodes(lease: Lease, shard: int, node_keys: Sequence[NodeKey]) -> Iterator[bytes]:
    yield LEASES.pack(lease.name)
    yield PUBLISHED.pack((shard,))
    for workflow in {node_key.workflow for node_key in node_keys}:
        yield RUNS.pack((workflow,))
    for node_key in node_keys:
        yield STATUSES.pack((node_key.workflow, node_key.node))


def of_dependents(unit: UnitOfWork, node_keys: Collection[NodeKey]) -> None:
    """Read the rows of dependents that are about to be released; of a single one announce all that may be read."""
    if len(node_keys) > 1:
        unit.expect_all(node_keys)
        return
    [node_key] = node_keys
    if not unit.has_read(node_key):
        unit.tr.read_ahead(_of_dependent(unit, node_key), _backlog(unit, node_key), limit=1)


def _of_dependent(unit: UnitOfWork, node_key: NodeKey) -> Iterator[bytes]:
    yield STATUSES.pack((node_key.workflow, node_key.node))
    node = unit.caches.definitions.node(node_key)
    if node is None:
        yield NODES.pack((node_key.workflow, node_key.node))
    elif len(node.after) <= MOST_AHEAD and has_expressions(node):
        yield VALUES.pack((node_key.workflow, "", INPUT))
        yield VALUES.pack((node_key.workflow, node_key.node, INPUT))
        for one in before(node, node_key.workflow):
            yield STATUSES.pack((one.workflow, one.node))
            yield VALUES.pack((one.workflow, one.node, RESULT))


def _backlog(unit: UnitOfWork, node_key: NodeKey) -> Iterator[KeyRange]:
    node = unit.caches.definitions.node(node_key)
    if node is not None and node.call is not None:
        yield READY.range((unit.shard, node.call.capability))
