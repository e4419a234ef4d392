"""Nodes' definitions as they are stored, kept in memory between transactions: they never change.

Reading one again from the store costs three times as much as reading it from its row, and a workflow's nodes are asked
for three or four times: when they are shown, released, claimed and recorded.
"""

from __future__ import annotations

from collections import OrderedDict

from dispatcher.layers.ledger.effects import Place

MOST_BYTES = 50_000_000
"""Of one shard. A node of a few edges and a small input takes some 400 bytes."""
OVERHEAD_BYTES = 250
"""What an entry takes beside its row, about."""


class Definitions:
    """So many bytes at most: beyond it those go that nobody asked for longest. Nodes that ended are let go."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Place, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

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
        row = self._rows.pop(place, None)
        if row is not None:
            self._bytes -= len(row) + OVERHEAD_BYTES
