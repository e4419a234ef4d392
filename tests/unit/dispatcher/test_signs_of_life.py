"""A long task whose delivery was acked early lives as long as its agent says so, and no longer."""

from __future__ import annotations

import pytest

from coditect.model.ids import AgentId
from coditect.wire.control import Progress, progress_message
from coditect.workflow.states import TaskState
from dispatcher.capacity import Window
from dispatcher.ledger.effects import Moved, Place
from dispatcher.ledger.rows import NodeRow
from dispatcher.shards.in_flight import Flights
from dispatcher.shards.results import Arrivals

PLACE = Place("w", "n")


class Heard:
    """The part of a desk and of a delivery that a sign of life touches."""

    def __init__(self, *progress: Progress) -> None:
        self.message = progress_message(list(progress))
        self.signs: list[Progress] = []
        self.acked = False

    def hear(self, progress: Progress) -> None:
        self.signs.append(progress)

    def ack(self) -> None:
        self.acked = True


@pytest.fixture
def flights() -> Flights:
    """One node that works with fence 2, heard at 1."""
    made = Flights(Window(lambda: 0.0))
    row = NodeRow(TaskState.WORKING, fence=2, publication=7, agent=AgentId("a"), published_ms=500)
    made.follow(Moved(PLACE, TaskState.WORKING, "code.review", "p1", row), 1.0)
    return made


def heard(flights: Flights) -> float:
    ((_, flight),) = flights
    return flight.heard


def test_progress_is_heard_and_acked() -> None:
    progress = Progress("w", "n", 2, 0.5, "half", 2_000)
    heard = Heard(progress, progress)

    Arrivals(heard).take(heard)  # type: ignore[arg-type]

    assert heard.signs == [progress, progress]
    assert heard.acked


@pytest.mark.parametrize(
    ("place", "fence", "at"),
    [(PLACE, 2, 9.0), (PLACE, 1, 1.0), (Place("w", "other"), 2, 1.0)],
    ids=["own", "older execution", "nobody"],
)
def test_only_the_execution_that_counts_keeps_its_node_alive(
    flights: Flights, place: Place, fence: int, at: float
) -> None:
    flights.hear(place, fence, 9.0)

    assert heard(flights) == at


def test_whose_start_was_not_told_is_alive_and_has_not_started() -> None:
    flights = Flights(Window(lambda: 0.0))
    row = NodeRow(TaskState.PUBLISHED, fence=2, publication=7, published_ms=500)
    flights.follow(Moved(PLACE, TaskState.PUBLISHED, "code.review", "p1", row), 1.0)

    flights.hear(PLACE, 2, 9.0)

    assert heard(flights) == 9.0
    assert flights.started == {}
