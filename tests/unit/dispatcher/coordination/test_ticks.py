"""The instants of schedules, in time zones with daylight saving, and which missed ones are made up for."""

from __future__ import annotations

from datetime import datetime
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from dispatcher.coordination.ticks import ON_TIME_MS, CatchUp, Ticks, read_ticks

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


def test_a_daily_tick_in_the_hour_that_spring_skips_comes_at_its_end() -> None:
    assert first(PARIS, "2026-03-28T12:00:00+01:00", 2) == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]


def test_a_daily_tick_in_the_hour_that_autumn_repeats_comes_once() -> None:
    assert first(PARIS, "2026-10-24T12:00:00+02:00", 2) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]


def test_a_tick_of_every_half_hour_comes_in_both_of_the_repeated_hours() -> None:
    assert first(HALF_HOURS, "2026-10-25T01:59:00+02:00", 4) == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:00:00+01:00",
        "2026-10-25T02:30:00+01:00",
    ]


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
    [(CatchUp.SKIP, 9, 50), (CatchUp.LATEST, 9, 49), (CatchUp.ALL, 3, 47), (CatchUp.ALL, 100, 20)],
)
def test_missed_ticks_are_made_up_for_by_the_policy(catch_up: CatchUp, most: int, expected: int) -> None:
    now_ms = 50_000 + ON_TIME_MS

    assert Ticks(every_ms=1_000).next_to_run(20_000, now_ms, catch_up, most) == expected * 1_000


@pytest.mark.parametrize("catch_up", CatchUp)
def test_a_tick_that_is_a_little_late_is_never_missed(catch_up: CatchUp) -> None:
    assert Ticks(every_ms=1_000).next_to_run(20_000, 20_000 + ON_TIME_MS, catch_up, 1) == 20_000


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
