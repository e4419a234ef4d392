"""Nodes' definitions as they are stored, kept in memory between transactions: they never change.

A workflow's nodes are asked for three or four times: when they are shown, released, claimed and recorded. Each read of
the store is a statement that gives the interpreter's lock away. So the rows are kept, and of the newest what
they say, too. A transaction only looks; what it read or wrote is noted when it is committed.

A definition is the node's row. One that is too large for it, by a long literal in its input or by thousands of
predecessors, lies in pieces among the values, and the row is empty: whoever reads the row knows whether there is more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coditect.workflow.definition import Node
from coditect.workflow.document import known_node
from dispatcher.ledger import values, versions
from dispatcher.ledger.effects import Defined, NodeKey
from dispatcher.ledger.keyspace import NODES
from dispatcher.store.transaction import Reads, Transaction

KIND = "definition"
MOST_ROW_BYTES = 90_000
"""A larger one lies among the values."""
MOST_BYTES = 50_000_000
"""Of one shard. A node of a few edges and a small input takes some 400 bytes."""
OVERHEAD_BYTES = 250
"""What an entry takes beside its row, about."""
MOST_READ_BYTES = 2_000_000
"""Of the rows whose nodes are kept as they were read, some 15,000 small ones between their release and their end: what
waits for room is claimed seconds later. A large input takes ten times its row, once read."""


def write(tr: Transaction, node_key: NodeKey, definition: bytes) -> None:
    """Stores the definition of a new node. Raises: ValueBeyondBound."""
    small = len(definition) <= MOST_ROW_BYTES
    if not small:
        values.put(tr, values.ValueKey(node_key.workflow, node_key.node, KIND), definition, first=True)
    tr.set(NODES.pack((node_key.workflow, node_key.node)), definition if small else b"")


def find(tr: Reads, node_key: NodeKey) -> bytes | None:
    """The node's definition; None when there is no such node. Raises: DamagedValue."""
    row = tr.get(NODES.pack((node_key.workflow, node_key.node)))
    return row if row != b"" else values.get(tr, values.ValueKey(node_key.workflow, node_key.node, KIND))


def find_all(tr: Reads, node_keys: Sequence[NodeKey]) -> Iterator[bytes | None]:
    """The definitions of the nodes, in their order, by one read and one for each that is large.

    Raises: DamagedValue, at the one that is.
    """
    rows = tr.get_many([NODES.pack((node_key.workflow, node_key.node)) for node_key in node_keys])
    for node_key, row in zip(node_keys, rows, strict=True):
        yield row if row != b"" else values.get(tr, values.ValueKey(node_key.workflow, node_key.node, KIND))


def known(node_key: NodeKey, row: bytes) -> Node:
    """What the row of a node says."""
    return known_node(node_key.node, versions.NODE.unpack(row))


class Definitions:
    """The cache of one shard: so many bytes at most, beyond which the oldest entries go.

    Only `note` changes it; the others may be called in a store's thread meanwhile.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[NodeKey, bytes] = OrderedDict()
        self._read: OrderedDict[NodeKey, tuple[Node, int]] = OrderedDict()
        self._read_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def node(self, node_key: NodeKey) -> Node | None:
        """What the node's row says, if that is remembered."""
        read = self._read.get(node_key)
        return None if read is None else read[0]

    def row(self, node_key: NodeKey) -> bytes | None:
        """The node's row, if it is remembered."""
        return self._rows.get(node_key)

    def note(self, told: Mapping[NodeKey, Defined | None]) -> None:
        """Remember what a committed transaction read or wrote, and forget the nodes that ended in it."""
        for node_key, definition in told.items():
            self._forget(node_key)
            if definition is not None:
                self._keep(node_key, *definition)
        while self._bytes > self._most_bytes:
            _, old = self._rows.popitem(last=False)
            self._bytes -= len(old) + OVERHEAD_BYTES
        while self._read_bytes > MOST_READ_BYTES:
            _, (_, size) = self._read.popitem(last=False)
            self._read_bytes -= size

    def _keep(self, node_key: NodeKey, row: bytes, node: Node | None) -> None:
        self._rows[node_key] = row
        self._bytes += len(row) + OVERHEAD_BYTES
        if node is not None:
            self._read[node_key] = node, len(row)
            self._read_bytes += len(row)

    def _forget(self, node_key: NodeKey) -> None:
        _, size = self._read.pop(node_key, (None, 0))
        self._read_bytes -= size
        row = self._rows.pop(node_key, None)
        if row is not None:
            self._bytes -= len(row) + OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class Caches:
    """What a shard's worker remembers between transactions, which read it and change nothing of it."""

    definitions: Definitions = field(default_factory=Definitions)
    """Filled from `Effects.definitions`."""
    set_aside: frozenset[bytes] = frozenset()
    """Keys of what is left over and is not to be gone on with for now."""
