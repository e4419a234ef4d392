from __future__ import annotations

import pytest

from benchmarks.figures import rounded
from benchmarks.parts import footprint, priorities, round_trip, slots, throughput
from benchmarks.parts.footprint import Footprint
from benchmarks.parts.priorities import Starts, Waits
from benchmarks.parts.round_trip import RoundTrips
from benchmarks.parts.slots import Walls
from benchmarks.parts.throughput import Pace, Paces
from benchmarks.verdict import Verdict


def judged(verdicts: tuple[Verdict, ...]) -> list[tuple[float, bool]]:
    return [(rounded(verdict.measured), verdict.ok) for verdict in verdicts]


def rounds(seconds: float) -> list[dict[str, object]]:
    return [{"tasks": 100, "seconds": seconds, "cpu_seconds": {"client": 0.02, "agent": 0.03, "broker": 0.04}}]


def test_pace_is_per_task() -> None:
    found = throughput.pace(rounds(0.5))

    assert found.tasks_per_second == (200.0,)
    assert {name: rounded(values[0]) for name, values in found.cpu_microseconds.items()} == {
        "client": 200.0,
        "agent": 300.0,
        "broker": 400.0,
    }


@pytest.mark.parametrize(("ours", "ratio", "ok"), [(90.0, 0.9, True), (89.0, 0.89, False)])
def test_throughput_wants_nine_tenths_of_the_other_side(ours: float, ratio: float, ok: bool) -> None:
    found = Paces(Pace((1.0, ours, 1_000.0), {}), Pace((100.0,), {}))

    assert judged(throughput.verdict(found)) == [(ratio, ok)]


def test_throughput_shows_both_sides() -> None:
    one = throughput.pace(rounds(0.5))

    names = [figure.name for figure in throughput.figures(Paces(one, one))]

    assert names[0] == "coditect: tasks per second"
    assert names[-1] == "aio-pika: CPU of the broker per task"


def test_round_trips_are_pooled_over_the_rounds() -> None:
    assert round_trip.pooled([{"milliseconds": [1.0, 2.0]}, {"milliseconds": [3.0]}]) == (1.0, 2.0, 3.0)


def test_round_trip_compares_middle_and_slow_end() -> None:
    found = RoundTrips(ours=(1.2,) * 98 + (5.0, 5.0), theirs=(1.0,) * 98 + (2.0, 2.0))

    assert judged(round_trip.verdict(found)) == [(1.2, True), (2.5, False)]
    assert [figure.value for figure in round_trip.figures(found)] == [1.2, 5.0, 1.0, 2.0]


def test_slots_want_nearly_the_ideal_of_the_tasks_that_may_use_them_all() -> None:
    assert judged(slots.verdict(Walls(p0=(1.05, 1.0, 9.0), p1=(9.0,)))) == [(95.24, True)]
    assert judged(slots.verdict(Walls(p0=(1.06,), p1=(1.0,)))) == [(94.34, False)]
    assert [figure.value for figure in slots.figures(Walls((1.0,), (2.0,)))] == [1.0, 2.0]


def test_priorities_judge_the_slow_end_and_the_share() -> None:
    found = Waits(
        loaded=(1.0,) * 98 + (201.0,) * 2,
        idle_peer=(9.0,) * 99 + (50.0,),
        idle_peer_of_hauler=(2.0, 3.0),
        flood=Starts(p0=120, p2=10),
    )

    assert judged(priorities.verdict(found)) == [(201.0, False), (9.0, True), (0.07692, True), (0.9231, True)]
    assert [figure.value for figure in priorities.figures(found)] == [1.0, 201.0, 9.0, 50.0, 2.0, 3.0, 120, 10]


def test_priorities_miss_when_bulk_work_takes_the_slots_of_a_flood() -> None:
    found = Waits((1.0,), (1.0,), (1.0,), Starts(p0=61, p2=39))

    assert judged(priorities.verdict(found))[-2:] == [(0.39, True), (0.61, False)]


def test_footprint_judges_medians_of_what_is_repeated() -> None:
    found = Footprint(79.9, 1.0, help_milliseconds=(100.0, 200.0, 900.0), start_seconds=(1.0, 2.0, 9.0))

    assert judged(footprint.verdict(found)) == [(79.9, True), (1.0, False), (200.0, True), (2.0, False)]
    assert [figure.value for figure in footprint.figures(found)] == [900.0, 9.0]
