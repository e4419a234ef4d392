"""The rule by which a flight counts as lost: what is known of it, how long it was silent, and on which occasion."""

from __future__ import annotations

import pytest

from coditect.model.ids import AgentId
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import Lost
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.rows import NodeRecord
from dispatcher.shards.in_flight import EARLY_ACK_MS, Fate, InFlight

NOW_MS = 10_000_000
GONE = AgentId("worker-1")
KEY = NodeKey("w", "n")


def one(
    *, begun: bool, acked: bool = False, doubted: bool = False, heartbeat_ms: int | None = None, agent: str = GONE
) -> InFlight:
    """A flight under the number 7, heard of at 0."""
    made, state = InFlight(Capacity(lambda: 0.0)), TaskState.WORKING if begun else TaskState.PUBLISHED
    published_ms = NOW_MS - EARLY_ACK_MS - acked
    row = NodeRecord(state, publication=7, fence=1, agent=agent if begun else "", published_ms=published_ms)
    row.heartbeat_ms = heartbeat_ms
    made.follow(Transition(KEY, state, "work.do", "p1", row), 0.0)
    made.doubt(7 if doubted else 6)
    return made


@pytest.mark.parametrize(
    ("flights", "until", "then"),
    [
        (one(begun=False), 60.0, Fate.SOUGHT),
        (one(begun=False, acked=True), 60.0, Fate.SOUGHT),
        (one(begun=False, heartbeat_ms=20_000), 60.0, Fate.SOUGHT),
        (one(begun=False, doubted=True), 2.9, Fate.LOST),
        (one(begun=True), 60.0, Fate.SOUGHT),
        (one(begun=True, acked=True), 60.0, Fate.LOST),
        (one(begun=True, doubted=True), 60.0, Fate.LOST),
        (one(begun=True, heartbeat_ms=20_000), 20.0, Fate.LOST),
        (one(begun=True, acked=True, heartbeat_ms=90_000), 90.0, Fate.LOST),
    ],
    ids=[
        "not begun",
        "not begun, published long ago",
        "not begun, with a heartbeat",
        "not begun, doubted",
        "begun",
        "long",
        "begun, doubted",
        "with a heartbeat",
        "long, with a heartbeat",
    ],
)
def test_silence_is_judged_by_what_it_is_a_silence_of(flights: InFlight, until: float, then: Fate) -> None:
    ((_, flight),) = flights

    assert flights.fate(flight, until, NOW_MS) is Fate.HELD
    assert flights.fate(flight, until + 0.2, NOW_MS) is flights.fate(flight, until + 100, NOW_MS) is then
    assert [lost.publication for lost in flights.lost(until + 0.2, NOW_MS)] == ([7] if then is Fate.LOST else [])


@pytest.mark.parametrize("flights", [one(begun=True), one(begun=True, acked=True)], ids=["short", "long"])
def test_what_an_agent_had_that_is_gone_is_lost(flights: InFlight) -> None:
    assert flights.agents == {GONE}
    assert flights.lost_with(GONE, 0.0) == [Lost(KEY, 7, GONE)]


@pytest.mark.parametrize("flights", [one(begun=False), one(begun=True, acked=True, agent="worker-2")])
def test_agent_that_is_gone_costs_no_other_anything(flights: InFlight) -> None:
    assert flights.lost_with(GONE, 0.0) == []


def test_tasks_of_a_shard_that_is_another_s_take_no_room() -> None:
    capacity = Capacity(lambda: 0.0)
    flights = InFlight(capacity)
    flights.follow(published("work.do"), 0.0)
    assert capacity.under_way("work.do") == 1

    flights.close()

    assert (capacity.under_way("work.do"), len(flights)) == (0, 0)


def test_task_that_another_capability_has_taken_over_takes_room_of_that_one_alone() -> None:
    capacity = Capacity(lambda: 0.0)
    flights = InFlight(capacity)
    flights.follow(published("work.do"), 0.0)

    flights.follow(published("work.other"), 0.0)

    assert (capacity.under_way("work.do"), capacity.under_way("work.other")) == (0, 1)


def published(capability: str) -> Transition:
    return Transition(KEY, TaskState.PUBLISHED, capability, "p1", NodeRecord(TaskState.PUBLISHED, publication=7))
