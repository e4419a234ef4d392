"""Where a dispatcher can be made to fail, and the bugs that can be planted in it. For tests and `coditect chaos` only.

What it does in one turn is: transaction, publish and confirm, acknowledge, answer, tell RQ. Between any two of these
steps it may die, so between any two of them stands a failpoint (`POINTS`). A test kills it at each.

A planted bug (`Plant`) is a line of the dispatcher that is left out on request, so that the checkers of a history can
prove that they would have noticed. Both are read once, in the program, and passed on as one value, `Sabotage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coditect.errors import SetupError
from coditect.failpoints import OFF, VARIABLE, Failpoints, read_orders

PLANT_VARIABLE = "CODITECT_PLANT"

POINTS: Mapping[str, str] = {
    "turn.begun": "commands were taken in hand; nothing is written",
    "turn.inside": "within the transaction, its writes made and not committed; the store's lock is held on SQLite",
    "turn.committed": "the commit is known; nothing was published",
    "turn.published": "the broker was given some of the turn's messages; nothing is known to be confirmed",
    "turn.confirmed": "all publishes are confirmed; the outbox rows are still there",
    "turn.acked": "the results are acknowledged",
    "turn.answered": "requests and claims are answered",
    "graph.telling": "RQ is about to be told",
    "graph.told": "RQ was told; the projection's cursor is not yet written",
    "graph.adopted": "jobs were taken from RQ's queues; nothing was claimed for them",
    "shard.taken": "a shard's lease is ours; nothing of it was looked at",
    "shard.given": "a shard was handed over; its successor may not know",
}
"""Every failpoint, and what is true there."""


class Plant(StrEnum):
    """A bug to be planted."""

    SKIP_FENCE = "skip_fence"
    """Results are recorded whatever their fence and publication."""
    ACK_BEFORE_COMMIT = "ack_before_commit"
    """Results are acknowledged before the transaction that records them."""
    DROP_OUTBOX_ROW = "drop_outbox_row"
    """Now and then a node is called published without a row in the outbox."""
    REUSE_PUBLICATION = "reuse_publication"
    """Now and then a publication number is given twice."""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """What is to go wrong in this dispatcher on purpose: nothing, by default."""

    failpoints: Failpoints = OFF
    plant: Plant | None = None


NONE = Sabotage()


def read_sabotage(environment: Mapping[str, str]) -> Sabotage:
    """What the environment asks for.

    Raises: SetupError for what there is not.
    """
    plant = environment.get(PLANT_VARIABLE, "")
    if plant and plant not in tuple(Plant):
        raise SetupError("There is no such bug to plant", variable=PLANT_VARIABLE, given=plant, known=tuple(Plant))
    orders = read_orders(environment.get(VARIABLE, ""), POINTS)
    return Sabotage(Failpoints(orders), Plant(plant) if plant else None)
