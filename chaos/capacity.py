"""The capacity of a dispatcher whose ready nodes all wait in the backlog, however free its agents are."""

from __future__ import annotations

from dispatcher.capacity import Capacity


class BacklogCapacity(Capacity):
    """A capacity that leaves no room to a transaction by itself: only RQ's proposals and the ledger's index bring any.

    So no node is claimed in the transaction that records its predecessor's result.
    """

    def room(self) -> dict[str, int]:
        """Return no room, for every capability."""
        return {"": 0}
