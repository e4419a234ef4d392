"""Nodes' definitions as they are stored, kept in memory between transactions: they never change.

A workflow's nodes are asked for three or four times: when they are shown, released, claimed and recorded. Each read of
the store is a statement that gives the interpreter's lock away. So the rows are kept, and of those that were asked for
last what they say, too.
"""

from __future__ import annotations

from collections import OrderedDict

from coditect.model.json import loads
from coditect.model.workflow.definition import Node
from coditect.model.workflow.document import known_node
from dispatcher.layers.ledger.effects import Place

MOST_BYTES = 50_000_000
"""Of one shard. A node of a few edges and a small input takes some 400 bytes."""
OVERHEAD_BYTES = 250
"""What an entry takes beside its row, about."""
MOST_READ = 16_384
"""Nodes between their release and their end, about 1 kB each: what waits for room is claimed seconds later."""


class Definitions:
    """So many bytes at most: beyond it those go that nobody asked for longest. Nodes that ended are let go."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Place, bytes] = OrderedDict()
        self._read: OrderedDict[Place, Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def node(self, place: Place) -> Node | None:
        """The node's definition, if it is remembered."""
        node = self._read.get(place)
        if node is None and (row := self.get(place)) is not None:
            node = self._take_in(place, row)
        return node

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
        self._read.pop(place, None)
        row = self._rows.pop(place, None)
        if row is not None:
            self._bytes -= len(row) + OVERHEAD_BYTES

    def _take_in(self, place: Place, row: bytes) -> Node:
        node = self._read[place] = known_node(place.node, loads(row))
        if len(self._read) > MOST_READ:
            self._read.popitem(last=False)
        return node
