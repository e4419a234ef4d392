from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.charts import Lines
from benchmarks.figures import rounded
from benchmarks.parts import (
    backlog,
    fire_and_forget,
    footprint,
    others,
    pace,
    priorities,
    round_trip,
    scaling,
    slots,
    throughput,
    workflow_stores,
)
from benchmarks.parts.backlog import Depth
from benchmarks.parts.footprint import Footprint
from benchmarks.parts.pace import Pace
from benchmarks.parts.priorities import Starts, Waits
from benchmarks.parts.sides import OTHERS, Side
from benchmarks.parts.slots import Walls
from benchmarks.programs.others import Other
from benchmarks.size import QUICK
from benchmarks.verdict import Verdict


def judged(verdicts: tuple[Verdict, ...]) -> list[tuple[float, bool]]:
    return [(rounded(verdict.measured), verdict.ok) for verdict in verdicts]


def rounds(seconds: float) -> list[dict[str, object]]:
    return [{"tasks": 100, "seconds": seconds, "cpu_seconds": {"client": 0.02, "agent": 0.03, "broker": 0.04}}]


def one_pace(*per_second: float, client: float = 40.0, agent: float = 50.0) -> Pace:
    return Pace(per_second, {"client": (client,), "agent": (agent,), "broker": (60.0,)})


def by_hand(direct: Pace, plain: Pace | None = None) -> dict[Side, Pace]:
    return {Side.DIRECT: direct, Side.PLAIN: plain or one_pace(100.0), Side.AIO_PIKA: one_pace(100.0)}


def test_pace_is_per_task() -> None:
    found = pace.pace(rounds(0.5))

    assert found.tasks_per_second == (200.0,)
    assert {name: rounded(values[0]) for name, values in found.cpu_microseconds.items()} == {
        "client": 200.0,
        "agent": 300.0,
        "broker": 400.0,
    }


def test_side_without_rounds_has_no_pace() -> None:
    assert list(pace.paces({Side.AIO_PIKA: rounds(0.5), Side.RQ: []})) == [Side.AIO_PIKA]


@pytest.mark.parametrize(
    ("direct", "plain", "verdicts"),
    [
        ((1.0, 300.0, 900.0), (90.0,), [(3.0, True), (0.9, True)]),
        ((299.0,), (89.0,), [(2.99, False), (0.89, False)]),
    ],
)
def test_throughput_wants_three_times_the_hand_written_program_and_nine_tenths_on_the_plain_path(
    direct: tuple[float, ...], plain: tuple[float, ...], verdicts: list[tuple[float, bool]]
) -> None:
    found = by_hand(one_pace(*direct), one_pace(*plain))

    assert judged(throughput.verdict(found))[:2] == verdicts


def test_throughput_wants_client_and_agent_cheap_on_direct_frames_only() -> None:
    found = by_hand(one_pace(300.0, client=50.0, agent=50.1), one_pace(100.0, client=500.0, agent=500.0))

    assert judged(throughput.verdict(found))[2:] == [(50.0, True), (50.1, False)]


def test_fire_and_forget_wants_three_times_the_hand_written_program() -> None:
    assert judged(fire_and_forget.verdict(by_hand(one_pace(300.0)))) == [(3.0, True)]
    assert judged(fire_and_forget.verdict(by_hand(one_pace(299.0)))) == [(2.99, False)]


def test_figures_show_every_side() -> None:
    names = [figure.name for figure in pace.figures(by_hand(one_pace(300.0)))]

    assert names[0] == "coditect: tasks per second"
    assert names[-1] == "aio-pika: CPU of the broker per task"


def test_round_trips_are_pooled_over_the_rounds() -> None:
    assert round_trip.pooled([{"milliseconds": [1.0, 2.0]}, {"milliseconds": [3.0]}]) == (1.0, 2.0, 3.0)


def test_round_trip_compares_middle_and_slow_end() -> None:
    found = {
        Side.DIRECT: (1.0,) * 98 + (3.2, 3.2),
        Side.PLAIN: (1.2,) * 98 + (4.0, 4.0),
        Side.AIO_PIKA: (1.0,) * 98 + (2.0, 2.0),
    }

    assert judged(round_trip.verdict(found)) == [(1.0, True), (1.6, False), (1.2, True), (2.0, True)]
    assert [figure.value for figure in round_trip.figures(found)] == [1.0, 3.2, 1.2, 4.0, 1.0, 2.0]


def test_notes_of_the_others_show_settings_and_who_could_not_run() -> None:
    notes = others.notes({Side.RQ: "not installed: rq\n  | the end of a log"})

    assert [note.partition(" ")[0] for note in notes] == ["Celery", "Taskiq", "RQ", "RQ"]
    assert "task_acks_late: true" in notes[0]
    assert 'broker_transport_options: {"confirm_publish": true}' in notes[0]
    assert "--ack-type when_saved" in notes[1]
    assert notes[-1] == "RQ could not be measured: not installed: rq | the end of a log"


def test_other_names_the_packages_that_it_misses() -> None:
    absent = Other(("psutil", "no-such-package"), (), "", {})

    assert others.missing(absent) == "not installed: no-such-package (make bench installs them)"
    assert others.missing(Other(("psutil",), (), "", {})) == ""


def test_others_are_compared_with_the_fastest_of_them() -> None:
    found = by_hand(one_pace(400.0)) | {Side.CELERY: one_pace(50.0), Side.TASKIQ: one_pace(100.0)}

    (chart,) = others.charts(found)

    assert chart.title == "No-op tasks with a result: 4.00 x Taskiq, the next queue"
    assert others.charts(by_hand(one_pace(400.0))) == ()
    assert len(OTHERS) == 3


@pytest.mark.parametrize(("kilobytes", "tasks"), [(1, 6_000), (16, 4_000), (256, 250)])
def test_larger_bodies_are_fewer(kilobytes: int, tasks: int) -> None:
    order = scaling.sized_burst(replace(QUICK, scaling_tasks=6_000), kilobytes)

    assert (order.body_bytes, order.count) == (kilobytes * 1_000, tasks)


def test_scaling_shows_the_median_of_each_step() -> None:
    found: scaling.Answer = {Side.DIRECT: {1: (10.0, 30.0, 20.0), 8: (80.0,)}, Side.AIO_PIKA: {1: (5.0,), 8: (6.0,)}}

    (chart,) = scaling.charts(scaling.BY_AGENTS, found)

    assert isinstance(chart, Lines)
    assert chart.title == "From 1 to 8 agent processes: 20 to 80 tasks per second"
    assert chart.series == {"coditect": [(1, 20.0), (8, 80.0)], "aio-pika": [(1, 5.0), (8, 6.0)]}
    assert [figure.value for figure in scaling.figures(scaling.BY_AGENTS, found)] == [20.0, 80.0, 5.0, 6.0]


def depth(queued: int, client: float, agent: float) -> Depth:
    return Depth(queued, 1_000.0, 2_000.0, (10.0, client), (20.0, agent))


def test_backlog_compares_memory_with_a_backlog_that_fills_every_buffer() -> None:
    found = [depth(1_000, 1.0, 1.0), depth(10_000, 50.0, 100.0), depth(100_000, 0.0, 0.0), depth(10**6, 70.0, 121.0)]

    assert judged(backlog.verdict(found)) == [(20.0, True), (21.0, False)]
    assert backlog.verdict(found)[0].name == "client's memory, growth from 10,000 to 1,000,000 queued"
    assert [chart.name for chart in backlog.charts(found)] == ["backlog", "memory"]


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


def test_foundationdb_is_judged_by_its_share_of_sqlites_speed_in_each_graphs_undisturbed_runs() -> None:
    found = workflow_stores.Found(
        {
            name: {
                workflow_stores.Store.SQLITE: [9.0, 1.0, 9.0, 9.0, 0.1, 9.0, 9.0, 9.0],
                workflow_stores.Store.FOUNDATIONDB: [9.0, 0.1, 9.0, 9.0, 9.0, 9.0, seconds, 9.0],
            }
            for name, seconds in (("fan", 1.6), ("chain", 2.0), ("layered", 2.5))
        },
        [{"committed": 100, "conflicted": 3}],
    )

    assert judged(workflow_stores.verdicts(QUICK, found)) == [(0.625, True), (0.5, True), (0.4, False)]
    shown = {figure.name: figure.value for figure in workflow_stores.figures(QUICK, found)}
    assert shown["fan of 302 on SQLite: per layer"] == 3000
    assert shown["FoundationDB: transactions conflicted in a round of all graphs"] == 3
