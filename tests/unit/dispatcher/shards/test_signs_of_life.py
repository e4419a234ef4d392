"""A long task whose delivery was acked early lives as long as its agent says so, and no longer."""

from __future__ import annotations

import pytest

from coditect.model.ids import AgentId
from coditect.wire.control import Progress, progress_message
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.rows import NodeRecord
from dispatcher.shards.in_flight import InFlight
from dispatcher.shards.results import ResultsConsumer

PLACE = NodeKey("w", "n")


class Heard:
    """The part of a shard worker and of a delivery that a sign of life touches."""

    def __init__(self, *progress: Progress) -> None:
        self.message = progress_message(list(progress))
        self.signs: list[Progress] = []
        self.acked = False

    def hear(self, progress: Progress) -> None:
        self.signs.append(progress)

    def ack(self) -> None:
        self.acked = True


@pytest.fixture
def in_flight() -> InFlight:
    """One node that works with fence 2, heard at 1."""
    made = InFlight(Capacity(lambda: 0.0))
    row = NodeRecord(TaskState.WORKING, fence=2, publication=7, agent=AgentId("a"), published_ms=500)
    made.follow(Transition(PLACE, TaskState.WORKING, "code.review", "p1", row), 1.0)
    return made


def heard(in_flight: InFlight) -> float:
    ((_, flight),) = in_flight
    return flight.heard


def test_progress_is_heard_and_acked() -> None:
    progress = Progress("w", "n", 2, 0.5, "half", 2_000)
    heard = Heard(progress, progress)

    ResultsConsumer(heard).take(heard)  # type: ignore[arg-type]

    assert heard.signs == [progress, progress]
    assert heard.acked


@pytest.mark.parametrize(
    ("node_key", "fence", "at"),
    [(PLACE, 2, 9.0), (PLACE, 1, 1.0), (NodeKey("w", "other"), 2, 1.0)],
    ids=["own", "older execution", "nobody"],
)
def test_only_the_execution_that_counts_keeps_its_node_alive(
    in_flight: InFlight, node_key: NodeKey, fence: int, at: float
) -> None:
    in_flight.hear(node_key, fence, 9.0)

    assert heard(in_flight) == at


def test_whose_start_was_not_told_is_alive_and_has_not_started() -> None:
    in_flight = InFlight(Capacity(lambda: 0.0))
    row = NodeRecord(TaskState.PUBLISHED, fence=2, publication=7, published_ms=500)
    in_flight.follow(Transition(PLACE, TaskState.PUBLISHED, "code.review", "p1", row), 1.0)

    in_flight.hear(PLACE, 2, 9.0)

    assert heard(in_flight) == 9.0
    assert in_flight.started == {}
