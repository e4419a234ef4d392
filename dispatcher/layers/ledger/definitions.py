"""Nodes' definitions as they are stored, kept in memory between transactions: they never change.

A workflow's nodes are asked for three or four times: when they are shown, released, claimed and recorded. Each read of
the store is a statement that gives the interpreter's lock away. So the rows are kept, and of those that were asked for
last what they say, too.

A definition is the node's row. One that is too large for it, by a long literal in its input or by thousands of
predecessors, lies in pieces among the values, and the row is empty: whoever reads the row knows whether there is more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from coditect.model.workflow.definition import Node
from coditect.model.workflow.document import known_node
from dispatcher.layers import values, versions
from dispatcher.layers.keyspace import NODES
from dispatcher.layers.ledger.effects import Place
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


def write(tr: Transaction, place: Place, definition: bytes) -> None:
    """Stores the definition of a new node. Raises: ValueBeyondBound."""
    small = len(definition) <= MOST_ROW_BYTES
    if not small:
        values.put(tr, values.Place(place.workflow, place.node, KIND), definition, first=True)
    tr.set(NODES.pack((place.workflow, place.node)), definition if small else b"")


def find(tr: Reads, place: Place) -> bytes | None:
    """The node's definition; None when there is no such node. Raises: DamagedValue."""
    row = tr.get(NODES.pack((place.workflow, place.node)))
    return row if row != b"" else values.get(tr, values.Place(place.workflow, place.node, KIND))


def find_all(tr: Reads, places: Sequence[Place]) -> Iterator[bytes | None]:
    """The definitions of the nodes, in their order, by one read and one for each that is large.

    Raises: DamagedValue, at the one that is.
    """
    rows = tr.get_many([NODES.pack((place.workflow, place.node)) for place in places])
    for place, row in zip(places, rows, strict=True):
        yield row if row != b"" else values.get(tr, values.Place(place.workflow, place.node, KIND))


def known(place: Place, row: bytes) -> Node:
    """What the row of a node says."""
    return known_node(place.node, versions.NODE.unpack(row))


class Definitions:
    """So many bytes at most: beyond it those go that nobody asked for longest. Nodes that ended are let go."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Place, bytes] = OrderedDict()
        self._read: OrderedDict[Place, tuple[Node, int]] = OrderedDict()
        self._read_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def node(self, place: Place) -> Node | None:
        """The node's definition, if it is remembered."""
        read = self._read.get(place)
        if read is not None:
            return read[0]
        row = self.get(place)
        return None if row is None else self._take_in(place, row)

    def unread_bytes(self, place: Place) -> int:
        """What of its row has to be read before `node` can tell it: nothing of one that is kept as it was read."""
        return 0 if place in self._read else len(self._rows.get(place, b""))

    def read(self, place: Place, row: bytes) -> Node:
        """What the row says; it is remembered."""
        self.put(place, row)
        return self._take_in(place, row)

    def get(self, place: Place) -> bytes | None:
        """The node's row, if it is remembered."""
        row = self._rows.get(place)
        if row is not None:
            self._rows.move_to_end(place)
        return row

    def put(self, place: Place, row: bytes) -> None:
        """Remembers it."""
        self.forget(place)
        self._rows[place] = row
        self._bytes += len(row) + OVERHEAD_BYTES
        while self._bytes > self._most_bytes:
            _, old = self._rows.popitem(last=False)
            self._bytes -= len(old) + OVERHEAD_BYTES

    def forget(self, place: Place) -> None:
        """It has ended: hardly anybody asks for it again."""
        _, size = self._read.pop(place, (None, 0))
        self._read_bytes -= size
        row = self._rows.pop(place, None)
        if row is not None:
            self._bytes -= len(row) + OVERHEAD_BYTES

    def learn(self, place: Place, node: Node) -> None:
        """What its row says, by whoever has read it already; nothing of a row that is not remembered."""
        row = self._rows.get(place)
        if row is not None and place not in self._read:
            self._keep(place, node, row)

    def _take_in(self, place: Place, row: bytes) -> Node:
        node = known(place, row)
        self._keep(place, node, row)
        return node

    def _keep(self, place: Place, node: Node, row: bytes) -> None:
        self._read[place] = node, len(row)
        self._read_bytes += len(row)
        while self._read_bytes > MOST_READ_BYTES:
            _, (_, size) = self._read.popitem(last=False)
            self._read_bytes -= size
