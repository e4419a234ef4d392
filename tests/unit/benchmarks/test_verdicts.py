"""Each part's verdicts follow from what it measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.charts import Lines
from benchmarks.figures import rounded
from benchmarks.parts import (
    backlog,
    breakers,
    commands,
    event_streams,
    fire_and_forget,
    footprint,
    http_api,
    locks,
    others,
    pace,
    parallel_docs,
    priorities,
    round_trip,
    scaling,
    schedules,
    slots,
    threads,
    throughput,
    timers,
    tracing,
    workflow_cost,
    workflow_size,
    workflow_state,
    workflow_stores,
    workflows,
)
from benchmarks.parts.pace import Pace
from benchmarks.parts.sides import OTHERS, Side
from benchmarks.parts.workflow_size import Grown
from benchmarks.programs.others import Other
from benchmarks.size import FULL, QUICK
from benchmarks.verdict import Verdict


def rounds(seconds: float, *, times: int = 1) -> list[dict[str, object]]:
    used = {"client": 0.02, "agent": 0.03, "broker": 0.04}
    return [{"tasks": 100, "seconds": seconds, "cpu_seconds": used}] * times


def one_pace(*per_second: float, client: float = 40.0, agent: float = 50.0) -> Pace:
    return Pace(per_second, {"client": (client,), "agent": (agent,), "broker": (60.0,)})


def by_hand(ours: Pace) -> dict[Side, Pace]:
    return {Side.CODITECT: ours, Side.AIO_PIKA: one_pace(100.0)}


def traced(up: int, dead: int) -> tracing.TracingRounds:
    percent = {tracing.Traced.OFF: 100, tracing.Traced.UP: up, tracing.Traced.DEAD: dead, tracing.Traced.ALL: 50}
    return tracing.TracingRounds({traced: rounds(100 / speed, times=3) for traced, speed in percent.items()})


def depth(queued: int, client: float, agent: float) -> backlog.Depth:
    return backlog.Depth(queued, 1_000.0, 2_000.0, (10.0, client), (20.0, agent))


def graph_seconds(**sides: tuple[float, float, float]) -> workflows.Seconds:
    """Of one run of each graph: nodes per second of the fan, milliseconds per hop, nodes per second of the layers."""
    named = {"ours": Side.CODITECT, "rq": Side.RQ, "celery": Side.CELERY, "taskiq": Side.TASKIQ, "dask": Side.DASK}
    found = {side: (1_002 / fan, hop / 10, 1_000 / layers) for side, (fan, hop, layers) in sides.items()}
    return {
        graph: {named[side]: [seconds[place]] for side, seconds in found.items()}
        for place, graph in enumerate(("fan", "chain", "layered"))
    }


def stores(name: str, seconds: float) -> dict[str, dict[workflow_stores.Store, list[float]]]:
    sqlite, fdb = [9.0, 1.0, 9.0, 9.0, 0.1, 9.0, 9.0, 9.0], [9.0, 0.1, 9.0, 9.0, 9.0, 9.0, seconds, 9.0]
    return {name: {workflow_stores.Store.SQLITE: sqlite, workflow_stores.Store.FOUNDATIONDB: fdb}}


SIDES = graph_seconds(
    ours=(5_000, 1.1, 3_999),
    rq=(1_000, 2.4, 800),
    celery=(1_250, 1.7, 900),
    taskiq=(1_999, 1.6, 1_600),
    dask=(1_700, 0.5, 1_332),
)
CHAINS = {"chains": {Side.CODITECT: [1.0], Side.TASKIQ: [2.9], Side.DASK: [0.9]}}
COSTS = workflow_cost.Costs({1_000: 0.25, 20_000: 0.26, 100_000: 0.3}, {1_000: [0.06, 9.0, 0.05], 10_000: [0.51]})
OUTAGE = breakers.BreakerTimes(calls=(1.0, 5.0, 9.0), opened=(0.0, 0.4, 1.0), probes=(2.0, 4.0, 6.1), recovered=1.5)
TICKS = schedules.ScheduleTimes(10_000, idle_percent_without=0.5, idle_percent_with=1.4, late=(0.01, 0.2, 0.9))
DUE = timers.TimerTimes(10_000, late=False, first=0.3, last=9.9)
API = http_api.ApiTimes((1.0, 1.0), requests=(3.9, 4.0), reads={"agents": http_api.ReadRate(500.0, 1_500.0)})
LOCKS = locks.LockTimes((2.0, 2.0), (3.0, 4.0, 5.0), (0.5,), turns=(1.0, 19.0), late_writes=500, accepted=0)
TALK = threads.TalkTimes(messages=(5.0, 9.0, 50.0), requests=(3.0,), by_hand=(2.0,), look_ups=(1.0, 4.0))
COMMANDS = commands.CommandTimes(tasks=(12.0, 17.0, 90.0), bare=(1.0, 2.0, 3.0))
DOCS = {"processor": parallel_docs.DocsTimes((1.0, 9.0), (7.5,)), "model": parallel_docs.DocsTimes((2.0,), (5.0,))}
SLOW_DOCS = {name: parallel_docs.DocsTimes((1.0,), (each,)) for name, each in (("processor", 1.4), ("model", 2.4))}
WAITS = priorities.Waits(
    loaded=(1.0,) * 98 + (201.0,) * 2,
    idle_peer=(9.0,) * 99 + (50.0,),
    idle_peer_of_hauler=(2.0, 3.0),
    flood=priorities.Starts(p0=120, p2=10),
)
FOOTPRINT = footprint.Footprint(79.9, 1.0, help_milliseconds=(100.0, 200.0, 900.0), start_seconds=(1.0, 2.0, 9.0))
STATE = workflow_state.Found(
    (1.0,) * 99 + (50.0,), (2.0,) * 99 + (60.0,), (1.0, 2.0), (6.0, 8.0), (0.5, 0.6, 0.7), (1.0, 2.0, 3.0), 1.9, 60.0
)
DEPTHS = [depth(1_000, 1.0, 1.0), depth(10_000, 50.0, 100.0), depth(100_000, 0.0, 0.0), depth(10**6, 70.0, 121.0)]
TRIPS = {Side.CODITECT: (1.0,) * 98 + (3.2, 3.2), Side.AIO_PIKA: (1.0,) * 98 + (2.0, 2.0)}
GROWN = {
    "wider": [
        Grown("a", 1_000, 1.0, 90.0),
        Grown("b", 10_000, 11.0, 120.0, 10.5),
        Grown("c", 100_000, 121.1, 249.0, 10.51),
    ],
    "longer": [Grown("d", 1_000, 1.0, 90.0), Grown("e", 10_000, 10.5, 250.0, 10.5)],
    "more": [Grown("f", 10_000, 1.0, 90.0), Grown("g", 100_000, 12.0, 90.0, 12.0)],
}
STORES = workflow_stores.Found(
    stores("fan", 1.2) | stores("chain", 1.25) | stores("layered", 1.3), [{"committed": 100, "conflicted": 3}]
)
STREAMS = event_streams.StreamDelays((*[10.0] * 99, 900.0))
SLOW_STREAMS = event_streams.StreamDelays((*[10.0] * 98, 250.0, 900.0))
VERDICTS: dict[str, tuple[tuple[Verdict, ...], str]] = {
    "throughput": (throughput.verdict(by_hand(one_pace(1.0, 300.0, 900.0, client=50.0))), "+++"),
    "throughput, slow": (throughput.verdict(by_hand(one_pace(299.0, agent=50.1))), "-+-"),
    "fire and forget": (fire_and_forget.verdict(by_hand(one_pace(300.0))), "+"),
    "fire and forget, slow": (fire_and_forget.verdict(by_hand(one_pace(299.0))), "-"),
    "round trip, slow at the end": (round_trip.verdict(TRIPS), "+-"),
    "backlog": (backlog.verdict(DEPTHS), "+-"),
    "slots": (slots.verdict(slots.Walls(p0=(1.05, 1.0, 9.0), p1=(9.0,))), "+"),
    "slots, idle": (slots.verdict(slots.Walls(p0=(1.06,), p1=(1.0,))), "-"),
    "priorities, slow at the end": (priorities.verdict(WAITS), "-+++"),
    "priorities, bulk work in the flood": (priorities.verdict(replace(WAITS, flood=priorities.Starts(61, 39))), "-++-"),
    "footprint": (footprint.verdict(FOOTPRINT), "+-+-"),
    "breakers": (breakers.verdicts(OUTAGE), "+++"),
    "breakers, slow": (breakers.verdicts(replace(OUTAGE, calls=(5.1,), opened=(0.0, 1.1), probes=(2.0, 3.0))), "---"),
    "schedules": (schedules.verdicts(TICKS), "++"),
    "schedules, slow": (schedules.verdicts(replace(TICKS, idle_percent_with=1.6, late=(0.01, 1.0))), "--"),
    "timers": (timers.verdicts(DUE), "+"),
    "timers, late": (timers.verdicts(replace(DUE, last=10.0)), "-"),
    "tracing": (tracing.verdicts(traced(94, 98)), "++"),
    "tracing, slow": (tracing.verdicts(traced(92, 96)), "--"),
    "the API": (http_api.verdicts(API), "++"),
    "the API, slow": (
        http_api.verdicts(replace(API, requests=(4.1,), reads={"agents": http_api.ReadRate(500.0, 999.0)})),
        "--",
    ),
    "event streams": (event_streams.verdicts(STREAMS), "+"),
    "event streams, late": (event_streams.verdicts(SLOW_STREAMS), "-"),
    "locks": (locks.verdicts(LOCKS), "+++"),
    "locks, slow": (locks.verdicts(replace(LOCKS, locks=(4.2,), turns=(20.0,), accepted=1)), "---"),
    "threads": (threads.verdicts(TALK), "+++"),
    "threads, slow": (threads.verdicts(replace(TALK, messages=(10.0,), requests=(3.1,), look_ups=(5.0,))), "---"),
    "commands": (commands.verdicts(COMMANDS), "+"),
    "commands, slow": (commands.verdicts(replace(COMMANDS, tasks=(17.1,))), "-"),
    "parallel documents": (parallel_docs.verdicts(DOCS), "++"),
    "parallel documents, slow": (parallel_docs.verdicts(SLOW_DOCS), "--"),
    "workflows": (workflows.verdicts(FULL, SIDES), "+++-+-+-+"),
    "workflows, alone": (workflows.verdicts(FULL, graph_seconds(ours=(5_000, 1.5, 4_000))), ""),
    "workflows, many chains": (workflows.verdicts(FULL, CHAINS), "-"),
    "workflow cost": (workflow_cost.verdicts(COSTS), "+-++-"),
    "workflow size": (workflow_size.verdicts(GROWN), "+-+--"),
    "workflow state": (workflow_state.verdicts(STATE, 10_000), "+--+"),
    "workflow state, slow": (
        workflow_state.verdicts(replace(STATE, query_milliseconds=(10.0,), cpu_percent=2.0), 10_000),
        "----",
    ),
    "workflow stores": (workflow_stores.verdicts(QUICK, STORES), "++-"),
}


@pytest.mark.parametrize(("verdicts", "met"), VERDICTS.values(), ids=VERDICTS)
def test_each_part_meets_or_misses_its_bounds(verdicts: tuple[Verdict, ...], met: str) -> None:
    assert "".join("+" if verdict.ok else "-" for verdict in verdicts) == met


def test_what_is_judged_is_a_middle_a_share_or_a_ratio() -> None:
    def measured(verdicts: tuple[Verdict, ...]) -> list[float]:
        return [rounded(verdict.measured) for verdict in verdicts]

    assert measured(commands.verdicts(COMMANDS)) == [15.0]
    assert measured(locks.verdicts(LOCKS))[0] == 2.0
    assert measured(priorities.verdict(WAITS)) == [201.0, 9.0, 0.07692, 0.9231]
    assert measured(slots.verdict(slots.Walls(p0=(1.05, 1.0, 9.0), p1=(9.0,)))) == [95.24]
    assert measured(workflows.verdicts(FULL, SIDES)) == [
        *(5.0, 4.0, 2.501, 2.941),
        0.6875,
        *(4.999, 4.443, 2.499, 3.002),
    ]
    assert measured(workflow_stores.verdicts(QUICK, STORES)) == [0.8333, 0.8, 0.7692]
    assert http_api.verdicts(API)[0].target == 4.0
    assert backlog.verdict(DEPTHS)[0].name == "client's memory, growth from 10,000 to 1,000,000 queued"


@pytest.mark.parametrize(
    ("figures", "values"),
    [
        (round_trip.figures(TRIPS), [1.0, 3.2, 1.0, 2.0]),
        (slots.figures(slots.Walls((1.0,), (2.0,))), [1.0, 2.0]),
        (priorities.figures(WAITS), [1.0, 201.0, 9.0, 50.0, 2.0, 3.0, 120, 10]),
        (footprint.figures(FOOTPRINT), [900.0, 9.0]),
        (workflow_state.figures(STATE), [1.0, 2.0, 2.0, 1.0, 6.0, 0.6, 3.0, 60.0]),
        (event_streams.figures(STREAMS), [10.0, 900.0]),
    ],
)
def test_figures_are_those_that_were_measured(figures: tuple[Any, ...], values: list[float]) -> None:
    assert [figure.value for figure in figures] == values


@pytest.mark.parametrize(("probes", "most"), [((), 0), ((1.0, 3.0), 1), ((1.0, 2.0, 2.5), 3), ((1.0, 2.5, 4.0), 2)])
def test_probes_are_counted_within_an_interval_of_each_other(probes: tuple[float, ...], most: int) -> None:
    assert breakers.most_in_an_interval(probes) == most


def test_a_tick_is_in_the_id_of_its_workflow_and_ticks_are_spread() -> None:
    assert schedules.lateness("019b76da-abe8-7567-b7b3-6dd9b592b055", 0x019B76DAABE8 + 250) == 0.25
    spread = {"0 0-59/5 * * * *", "1 1-59/5 * * * *", "59 4-59/5 * * * *"}
    assert {schedules.spread(number) for number in (0, 61, 299, 300)} == spread


def test_pace_is_per_task_and_a_side_without_rounds_has_none() -> None:
    found = pace.paces({Side.AIO_PIKA: rounds(0.5), Side.RQ: []})

    assert list(found) == [Side.AIO_PIKA]
    assert found[Side.AIO_PIKA].tasks_per_second == (200.0,)
    assert [rounded(values[0]) for values in found[Side.AIO_PIKA].cpu_microseconds.values()] == [200.0, 300.0, 400.0]


def test_notes_of_the_others_show_settings_and_who_could_not_run() -> None:
    notes = others.notes({Side.RQ: "not installed: rq\n  | the end of a log"})

    assert [note.partition(" ")[0] for note in notes] == ["Celery", "Taskiq", "RQ", "RQ"]
    assert "task_acks_late: true" in notes[0]
    assert "--ack-type when_saved" in notes[1]
    assert notes[-1] == "RQ could not be measured: not installed: rq | the end of a log"
    absent = Other(("psutil", "no-such-package"), (), "", {})
    assert others.missing(absent) == "not installed: no-such-package (make bench installs them)"
    assert others.missing(Other(("psutil",), (), "", {})) == ""


def test_charts_name_the_best_of_the_others_and_the_middle_of_each_step() -> None:
    found = by_hand(one_pace(400.0)) | {Side.CELERY: one_pace(50.0), Side.TASKIQ: one_pace(100.0)}
    steps: scaling.Answer = {Side.CODITECT: {1: (10.0, 30.0, 20.0), 8: (80.0,)}, Side.AIO_PIKA: {1: (5.0,), 8: (6.0,)}}

    assert [chart.title for chart in others.charts(found)] == [
        "No-op tasks with a result: 4.00 x Taskiq, the next queue"
    ]
    assert others.charts(by_hand(one_pace(400.0))) == ()
    assert [chart.title for chart in workflows.charts(FULL, SIDES)] == [
        "Fan of 1,002 nodes: 2.50 x Taskiq, the best of the others",
        "Chain of 100 nodes: 2.20 x Dask, the best of the others",
        "Layered of 1,000 nodes: 2.50 x Taskiq, the best of the others",
    ]
    (grown,) = workflow_size.charts(GROWN)
    assert grown.title == "From 1,000 to 100,000 nodes in one workflow: 1,000 to 826 nodes per second on one core"
    (chart,) = scaling.charts(scaling.BY_AGENTS, steps)
    assert isinstance(chart, Lines)
    assert chart.title == "From 1 to 8 agent processes: 20 to 80 tasks per second"
    assert chart.series == {"coditect": [(1, 20.0), (8, 80.0)], "aio-pika": [(1, 5.0), (8, 6.0)]}
    assert len(OTHERS) == 3


@pytest.mark.parametrize(("kilobytes", "tasks"), [(1, 6_000), (16, 4_000), (256, 250)])
def test_larger_bodies_are_fewer(kilobytes: int, tasks: int) -> None:
    order = scaling.sized_burst(replace(QUICK, scaling_tasks=6_000), kilobytes)

    assert (order.body_bytes, order.count) == (kilobytes * 1_000, tasks)
