"""Schedules of one shard, tick by tick: the test plays time and the dispatcher's restarts."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.states import WorkflowState
from dispatcher.coordination import schedules
from dispatcher.coordination.schedules import list_schedules, show_schedule
from dispatcher.coordination.ticks import ON_TIME_MS, Ticks, read_ticks
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Due
from dispatcher.ledger.keyspace import DUE, RUNS, SCHEDULES, TIMERS, VALUES
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.timers import Timer
from tests.unit.dispatcher.lone_ledger import Ledger, completed

ONE = {"name": "one", "nodes": {"only": {"task": "work", "input": {"$from": "input"}}}}


async def create(ledger: Ledger, name: str = "s", **more: Any) -> dict[str, Any]:
    when = {} if "cron" in more else {"every": "1m"}
    return await ledger.ask(Verb.SCHEDULE_CREATE, {"schedule": name, "workflow": ONE} | when | more)


async def ask(ledger: Ledger, verb: Verb, name: str = "s") -> dict[str, Any]:
    return await ledger.ask(verb, {"schedule": name})


async def shown(ledger: Ledger, name: str = "s") -> dict[str, Any]:
    return await ledger.read(show_schedule, schedule=name)


async def runs(ledger: Ledger) -> list[str]:
    return [RUNS.unpack(key)[0] for key, _ in await ledger.rows(RUNS)]


async def test_every_tick_starts_one_workflow_with_its_instant(ledger: Ledger) -> None:
    made = await create(ledger, input={"at": {"$from": "tick"}, "plain": 1})
    for _ in range(6):
        await ledger.pass_time(20)

    assert (made["next"], made["state"]) == (1_020_000, "active")
    inputs = [loads(one.task.body) for one in ledger.published]
    assert [one["at"] for one in inputs] == ["1970-01-01T00:17:00+00:00", "1970-01-01T00:18:00+00:00"]
    assert len(await runs(ledger)) == 2
    assert (await shown(ledger))["runs"] == 2


@pytest.mark.parametrize(("catch_up", "started"), [("skip", 0), ("latest", 1), ("all", 2)])
async def test_ticks_that_were_missed_are_made_up_for(ledger: Ledger, catch_up: str, started: int) -> None:
    await create(ledger, catch_up=catch_up, most_missed=2)
    ledger.now_ms += 305_000
    for _ in range(5):
        await ledger.pass_time(0)

    assert len(await runs(ledger)) == started
    assert (await shown(ledger))["next"] == 1_320_000


async def test_a_schedule_starts_a_workflow_with_its_children(ledger: Ledger) -> None:
    child = {"nodes": {"n": {"task": "work", "input": {"$from": "input.at"}}}}
    whole = {"name": "whole", "nodes": {"a": {"workflow": "part", "input": {"$from": "input"}}}}
    await create(ledger, workflow=whole | {"workflows": {"part": child}}, input={"at": {"$from": "tick"}})

    await ledger.pass_time(20)

    assert [one.task.body for one in ledger.published] == [b'"1970-01-01T00:17:00+00:00"']
    assert len(await runs(ledger)) == 2


async def test_a_tick_whose_timer_comes_twice_starts_one_workflow(ledger: Ledger) -> None:
    await create(ledger)
    (timer,) = await ledger.database.read(lambda tr: timers.due(tr, 0, 2_000_000))
    ledger.now_ms = timer.due_ms

    await ledger.batch(Due(timer), Due(timer))
    await ledger.batch(Due(timer))

    assert len(await runs(ledger)) == 1


async def test_a_schedule_that_is_made_again_starts_no_tick_twice(ledger: Ledger) -> None:
    await create(ledger)
    await ledger.pass_time(21)
    first = await runs(ledger)
    await ask(ledger, Verb.SCHEDULE_DELETE)
    ranges = [space.range() for space in (SCHEDULES, TIMERS, DUE)]
    left = await ledger.database.read(lambda tr: tr.get_ranges(ranges))

    ledger.now_ms -= 10_000  # the clock of the machine was put back
    await create(ledger)
    await ledger.pass_time(11)  # and the tick is carried out a little later

    assert left == [[], [], []]
    assert await runs(ledger) == first


@pytest.mark.parametrize(
    ("overlap", "ends", "states", "skipped"),
    [
        ("allow", False, ["running", "running"], 0),
        ("skip", False, ["running"], 1),
        ("skip", True, ["completed", "running"], 0),
        ("cancel", False, ["canceled", "running"], 0),
    ],
)
async def test_a_tick_that_overlaps_an_earlier_run_follows_the_policy(
    ledger: Ledger, overlap: str, ends: bool, states: list[str], skipped: int
) -> None:
    await create(ledger, overlap=overlap)
    await ledger.pass_time(20)
    if ends:
        await ledger.play(lambda _: completed())
    await ledger.pass_time(60)

    found = [(await ledger.state(workflow)).value for workflow in await runs(ledger)]
    assert (found, (await shown(ledger))["skipped"]) == (states, skipped)


async def test_a_paused_schedule_starts_nothing_and_makes_nothing_up(ledger: Ledger) -> None:
    await create(ledger, catch_up="all")
    paused = await ask(ledger, Verb.SCHEDULE_PAUSE)
    await ledger.pass_time(600)
    during = await runs(ledger)

    resumed = await ask(ledger, Verb.SCHEDULE_RESUME)
    await ledger.pass_time(60)

    assert (paused["state"], paused["next"], during) == ("paused", None, [])
    assert resumed["next"] == 1_620_000
    assert len(await runs(ledger)) == 1


async def test_a_schedule_runs_at_once_on_request_and_keeps_its_ticks(ledger: Ledger) -> None:
    await create(ledger, paused=True)

    answer = await ask(ledger, Verb.SCHEDULE_RUN)

    assert await runs(ledger) == [answer["workflow"]]
    assert await ledger.state(answer["workflow"]) is WorkflowState.RUNNING
    assert (await shown(ledger))["next"] is None


async def test_a_schedule_is_replaced_only_on_request_and_keeps_its_count(ledger: Ledger) -> None:
    await create(ledger)
    await ledger.pass_time(20)

    with pytest.raises(InputError, match="There is a schedule of this name"):
        await create(ledger)
    replaced = await create(ledger, cron="0 8 * * 1-5", zone="Europe/Paris", replace=True)

    assert (replaced["runs"], replaced["every_ms"], replaced["zone"]) == (1, None, "Europe/Paris")
    assert (await shown(ledger))["upcoming"][0] == "1970-01-01T08:00:00+01:00"


async def test_a_deleted_schedule_leaves_nothing_but_its_workflows(ledger: Ledger) -> None:
    await create(ledger)
    await ask(ledger, Verb.SCHEDULE_DELETE)
    kept = await ledger.rows(VALUES, "")
    with pytest.raises(NotFound, match="no such schedule"):
        await ask(ledger, Verb.SCHEDULE_RUN)
    await ledger.batch(Due(Timer("", "s", schedules.TICK, 5)))

    assert (kept, await runs(ledger)) == ([], [])


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "a b"}, {"every": "1ms"}, {"cron": "* * * *"}, {"overlap": "queue"}, {"catch_up": "some"},
     {"most_missed": 0}, {"jitter": "2h"}, {"workflow": {"name": "x", "nodes": {}}}, {"workflow": None},
     {"input": {"$from": "input.x"}}, {"colour": 1}],
)  # fmt: skip
async def test_a_wrong_schedule_is_refused_and_leaves_nothing(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        await create(ledger, **wrong)

    assert await ledger.rows(SCHEDULES) == []


async def test_schedules_are_listed_by_name_in_pages(ledger: Ledger) -> None:
    for name in ("b", "a", "c"):
        await create(ledger, name)

    first = await ledger.read(list_schedules, limit=2)
    second = await ledger.read(list_schedules, limit=2, after=first["next"])

    assert [one["schedule"] for page in (first, second) for one in page["schedules"]] == ["a", "b", "c"]
    assert second["next"] is None


@pytest.mark.parametrize("shard", range(16))
def test_the_id_of_a_tick_is_always_the_same_and_belongs_to_the_schedules_shard(shard: int) -> None:
    ids = {schedules.run_id("nightly", 1_795_000_000_000, shard, 16) for _ in range(3)}

    (workflow,) = ids
    assert shard_of(workflow, 16) == shard
    assert workflow[14] == "7"
    assert schedules.run_id("nightly", 1_795_000_060_000, shard, 16) not in ids


PARIS = Ticks("30 2 * * *", "Europe/Paris")
HALF_HOURS = Ticks("*/30 * * * *", "Europe/Paris")


def ms(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000)


def first(ticks: Ticks, after: str, number: int) -> list[str]:
    found, at_ms = [], ms(after)
    for _ in range(number):
        at_ms = ticks.after(at_ms) or 0
        found.append(ticks.local(at_ms))
    return found


@pytest.mark.parametrize(
    ("ticks", "after", "follow"),
    [
        (PARIS, "2026-03-28T12:00:00+01:00", ["29T03:00:00+02:00", "30T02:30:00+02:00"]),
        (PARIS, "2026-10-24T12:00:00+02:00", ["25T02:30:00+02:00", "26T02:30:00+01:00"]),
        (HALF_HOURS, "2026-10-25T01:59:00+02:00", [
            "25T02:00:00+02:00", "25T02:30:00+02:00", "25T02:00:00+01:00", "25T02:30:00+01:00",
        ]),
    ],
    ids=["once at the end of the hour that spring skips", "once in the hour that autumn repeats", "in both of them"],
)  # fmt: skip
def test_ticks_come_when_the_clocks_change(ticks: Ticks, after: str, follow: list[str]) -> None:
    assert [one.removeprefix(after[:8]) for one in first(ticks, after, len(follow))] == follow


@pytest.mark.parametrize(
    "ticks", [PARIS, HALF_HOURS, Ticks("0 8 * * 1-5"), Ticks("*/7 * * * * *"), Ticks(every_ms=1_500)]
)
@given(st.integers(ms("2026-03-01T00:00:00Z"), ms("2026-11-30T00:00:00Z")))
def test_ticks_backwards_are_those_forwards(ticks: Ticks, at_ms: int) -> None:
    latest, before = islice(ticks.until(at_ms), 2)

    assert before < latest <= at_ms < (ticks.after(at_ms) or 0)
    assert ticks.after(before) == latest


@given(st.integers(0, 10**12))
def test_the_jitter_of_a_tick_is_within_its_bound_and_always_the_same(tick_ms: int) -> None:
    ticks = Ticks(every_ms=1_000, jitter_ms=500)

    assert tick_ms <= ticks.due_ms("a", tick_ms) <= tick_ms + 500
    assert ticks.due_ms("a", tick_ms) == ticks.due_ms("a", tick_ms)


@pytest.mark.parametrize(
    ("catch_up", "most", "expected"),
    [("skip", 9, 50), ("latest", 9, 49), ("all", 3, 47), ("all", 100, 20)],
)
def test_missed_ticks_are_made_up_for_by_the_policy(catch_up: str, most: int, expected: int) -> None:
    ticks, now_ms = Ticks(every_ms=1_000), 50_000 + ON_TIME_MS

    assert ticks.next_to_run(20_000, now_ms, catch_up, most) == expected * 1_000
    assert ticks.next_to_run(20_000, 20_000 + ON_TIME_MS, catch_up, 1) == 20_000


@pytest.mark.parametrize(
    ("cron", "zone", "every_ms", "told"),
    [
        (None, None, None, "either `cron` or `every`"),
        ("* * * * *", None, 5_000, "either `cron` or `every`"),
        ("* * * *", None, None, "no cron expression"),
        ("@daily", None, None, "no cron expression"),
        ("0 0 30 2 *", None, None, "no cron expression"),
        ("* * * * *", "Mars/Olympus", None, "no such time zone"),
        ("* * * * *", "../etc", None, "no such time zone"),
        (None, None, 999, "at least 1s"),
    ],
)
def test_what_declares_no_ticks_is_refused(cron: str | None, zone: str | None, every_ms: int | None, told: str) -> None:
    with pytest.raises(InvalidTask, match=told):
        read_ticks(cron, zone, every_ms, 0, now_ms=0)
