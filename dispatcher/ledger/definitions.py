"""The definitions of workflow nodes in the store, and a cache of them; a definition never changes.

A workflow's nodes are read three or four times: when they are shown, released, claimed and recorded. Each read of the
store is a statement that gives the interpreter's lock away. So the cache keeps the rows, and of the newest rows also
the parsed nodes. A transaction only reads the cache; what it read or wrote is added to the cache after the commit.

A definition is the node's row. A definition that is too large for the row (a long literal in its input, or thousands of
predecessors) lies in pieces among the values, and its row is empty.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coditect.workflow.definition import Node
from coditect.workflow.documents.document import known_node
from dispatcher.ledger import values, versions
from dispatcher.ledger.effects import Defined, NodeKey
from dispatcher.ledger.keyspace import NODES
from dispatcher.store.transaction import Reads, Transaction

DEFINITION_VALUE = "definition"
MOST_ROW_BYTES = 90_000
"""The largest definition in bytes that lies in the node's row; a larger one lies in pieces among the values."""
MAX_CACHED_BYTES = 50_000_000
"""The largest size in bytes of one shard's cache of definitions; a small node takes some 400 bytes."""
OVERHEAD_BYTES = 250
"""The approximate size in bytes of an entry of the cache, without the definition itself."""
MOST_READ_BYTES = 2_000_000
"""The largest size in bytes of the definitions that the cache keeps parsed, some 15,000 small nodes.

A node that waits for room is claimed seconds later. A large input takes ten times its row once it is parsed.
"""


def write(tr: Transaction, node_key: NodeKey, definition: bytes) -> None:
    """Write the definition of a new node to the store.

    Raises:
        ValueBeyondBound: when the definition is larger than one value may be.
    """
    small = len(definition) <= MOST_ROW_BYTES
    if not small:
        values.put(tr, values.ValueKey(node_key.workflow, node_key.node, DEFINITION_VALUE), definition, first=True)
    tr.set(NODES.pack((node_key.workflow, node_key.node)), definition if small else b"")


def find(tr: Reads, node_key: NodeKey) -> bytes | None:
    """Return the stored bytes of a node's definition, also of one kept in pieces; None when there is no such node.

    Raises:
        DamagedValue: when a large definition is not what was written.
    """
    row = tr.get(NODES.pack((node_key.workflow, node_key.node)))
    return row if row != b"" else values.get(tr, values.ValueKey(node_key.workflow, node_key.node, DEFINITION_VALUE))


def find_all(tr: Reads, node_keys: Sequence[NodeKey]) -> Iterator[bytes | None]:
    """Yield the bytes of several nodes' definitions in order, None if unknown, by one read and one per large one.

    Raises:
        DamagedValue: at a large definition that is not what was written.
    """
    rows = tr.get_many([NODES.pack((node_key.workflow, node_key.node)) for node_key in node_keys])
    for node_key, row in zip(node_keys, rows, strict=True):
        yield row if row != b"" else values.get(tr, values.ValueKey(node_key.workflow, node_key.node, DEFINITION_VALUE))


def known(node_key: NodeKey, row: bytes) -> Node:
    """Decode the stored definition of a node, and return the `Node` that it defines."""
    return known_node(node_key.node, versions.NODE_DOCUMENT.unpack(row))


class Definitions:
    """The cache of one shard's node definitions; beyond 50 MB the oldest entries are dropped.

    Only `note` changes the cache; the other methods may run in a store's thread at the same time.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._rows: OrderedDict[NodeKey, bytes] = OrderedDict()
        self._read: OrderedDict[NodeKey, tuple[Node, int]] = OrderedDict()
        self._followers: dict[NodeKey, NodeKey] = {}
        """For each node, the node that was parsed last among those whose only predecessor it is."""
        self._read_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def node(self, node_key: NodeKey) -> Node | None:
        """Return the parsed definition of a node; None when the cache does not have it."""
        read = self._read.get(node_key)
        return None if read is None else read[0]

    def follower(self, node_key: NodeKey) -> NodeKey | None:
        """Return a node whose only predecessor is the given one, as in a chain; None when the cache knows none."""
        return self._followers.get(node_key)

    def row(self, node_key: NodeKey) -> bytes | None:
        """Return the stored bytes of a node's definition; None when the cache does not have them."""
        return self._rows.get(node_key)

    def note(self, changes: Mapping[NodeKey, Defined | None]) -> None:
        """Add the definitions that a committed transaction read or wrote, and drop those of nodes that ended in it."""
        for node_key, definition in changes.items():
            self._forget(node_key)
            if definition is not None:
                self._keep(node_key, *definition)
        while self._bytes > MAX_CACHED_BYTES:
            _, old = self._rows.popitem(last=False)
            self._bytes -= len(old) + OVERHEAD_BYTES
        while self._read_bytes > MOST_READ_BYTES:
            self._forget_read(next(iter(self._read)))

    def _keep(self, node_key: NodeKey, row: bytes, node: Node | None) -> None:
        self._rows[node_key] = row
        self._bytes += len(row) + OVERHEAD_BYTES
        if node is not None:
            self._read[node_key] = node, len(row)
            self._read_bytes += len(row)
            if len(node.after) == 1:
                self._followers[NodeKey(node_key.workflow, node.after[0].node)] = node_key

    def _forget(self, node_key: NodeKey) -> None:
        if node_key in self._read:
            self._forget_read(node_key)
        row = self._rows.pop(node_key, None)
        if row is not None:
            self._bytes -= len(row) + OVERHEAD_BYTES

    def _forget_read(self, node_key: NodeKey) -> None:
        node, size = self._read.pop(node_key)
        self._read_bytes -= size
        if len(node.after) == 1:
            self._followers.pop(NodeKey(node_key.workflow, node.after[0].node), None)


@dataclass(frozen=True, slots=True)
class Caches:
    """The data that a shard's worker keeps between transactions, and that its transactions only read."""

    definitions: Definitions = field(default_factory=Definitions)
    """The cache of the shard's node definitions, filled from `Effects.definitions` after each commit."""
    set_aside: frozenset[bytes] = frozenset()
    """The keys of unfinished pieces of work that failed and are not to be continued for now."""
    backlog: frozenset[str] = frozenset()
    """The capabilities that have ready nodes waiting for room."""
