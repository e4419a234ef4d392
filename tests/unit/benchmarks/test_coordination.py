"""The verdicts on breakers, schedules and timers follow from the measured times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.parts import breakers, schedules, timers, tracing

OUTAGE = breakers.BreakerTimes(calls=(1.0, 5.0, 9.0), opened=(0.0, 0.4, 1.0), probes=(2.0, 4.0, 6.1), recovered=1.5)
TICKS = schedules.ScheduleTimes(10_000, idle_percent_without=0.5, idle_percent_with=1.4, late=(0.01, 0.2, 0.9))
DUE = timers.TimerTimes(10_000, late=False, first=0.3, last=9.9)


def test_a_closed_call_a_trip_and_the_probes_have_bounds() -> None:
    bad = replace(OUTAGE, calls=(5.1,), opened=(0.0, 1.1), probes=(2.0, 3.0))

    assert [one.ok for one in breakers.verdicts(OUTAGE)] == [True, True, True]
    assert [one.ok for one in breakers.verdicts(bad)] == [False, False, False]
    assert len(breakers.figures(OUTAGE)) == 3


@pytest.mark.parametrize(("probes", "most"), [((), 0), ((1.0, 3.0), 1), ((1.0, 2.0, 2.5), 3), ((1.0, 2.5, 4.0), 2)])
def test_probes_are_counted_within_an_interval_of_each_other(probes: tuple[float, ...], most: int) -> None:
    assert breakers.most_in_an_interval(probes) == most


def test_late_ticks_and_the_idle_cost_have_bounds() -> None:
    bad = replace(TICKS, idle_percent_with=1.6, late=(0.01, 1.0))

    assert [one.ok for one in schedules.verdicts(TICKS)] == [True, True]
    assert [one.ok for one in schedules.verdicts(bad)] == [False, False]
    assert len(schedules.figures(TICKS)) == 4


def test_a_tick_is_in_the_id_of_its_workflow() -> None:
    assert schedules.lateness("019b76da-abe8-7567-b7b3-6dd9b592b055", 0x019B76DAABE8 + 250) == 0.25


def test_schedules_that_tick_are_spread_and_the_others_do_not_tick_soon() -> None:
    assert {schedules.spread(number) for number in (0, 61, 299, 300)} == {
        "0 0-59/5 * * * *",
        "1 1-59/5 * * * *",
        "59 4-59/5 * * * *",
    }
    assert schedules.yearly(0).endswith(" *")


def test_all_timers_are_done_within_a_bound() -> None:
    assert [one.ok for one in timers.verdicts(DUE)] == [True]
    assert [one.ok for one in timers.verdicts(replace(DUE, last=10.0))] == [False]


@pytest.mark.parametrize(("up", "dead", "ok"), [(94, 98, [True, True]), (92, 96, [False, False])])
def test_tracing_is_judged_by_its_speed_beside_none(up: int, dead: int, ok: list[bool]) -> None:
    def rounds(seconds: float) -> list[dict[str, object]]:
        return [{"tasks": 100, "seconds": seconds, "cpu_seconds": {"client": 0.1, "agent": 0.2, "broker": 0.3}}] * 3

    found = tracing.TracingRounds(
        {
            tracing.Traced.OFF: rounds(1.0),
            tracing.Traced.UP: rounds(100 / up),
            tracing.Traced.DEAD: rounds(100 / dead),
            tracing.Traced.ALL: rounds(2.0),
        }
    )

    assert [one.ok for one in tracing.verdicts(found)] == ok
    assert [round(one.value) for one in tracing.figures(found)][3:5] == [50, 3000]
    assert tracing.settings_of(tracing.Traced.OFF, 1, 2) == {}
    assert tracing.settings_of(tracing.Traced.DEAD, 1, 2)["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:2"
