from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError
from coditect.model.duration import duration_text, milliseconds, seconds


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("2d", 172_800),
        (" 1.5 s ", 1.5),
        ("0s", 0),
        (5, 5),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
    ],
)
def test_duration_is_read_in_seconds(given_: str | float | timedelta, expected: float) -> None:
    assert seconds(given_) == pytest.approx(expected)


@pytest.mark.parametrize(
    "given_",
    [
        "", "5", "s", "-5s", "5 minutes", "1h30m", "1e3s", "inf", "nan s", "9" * 400 + "s", -1, float("nan"),
        float("inf"), 10**400, timedelta(seconds=-1),
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(given_: str | float | timedelta) -> None:
    with pytest.raises(InputError):
        seconds(given_)


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?(ms|s|m|h|d|x)?", fullmatch=True))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        value = seconds(text)
    except InputError:
        return

    assert 0 <= value < float("inf")


@given(st.integers(0, 10**6), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_unit_scales_the_number(number: int, unit: str) -> None:
    scale = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}[unit]

    assert seconds(f"{number}{unit}") == pytest.approx(number * scale)


@given(st.integers(1, 10**13))
def test_whole_milliseconds_become_text_and_back(whole_ms: int) -> None:
    assert milliseconds(duration_text(whole_ms)) == whole_ms


@pytest.mark.parametrize(("whole_ms", "text"), [(1, "1ms"), (90_000, "90s"), (3_600_000, "1h"), (172_800_000, "2d")])
def test_a_duration_is_written_in_its_largest_whole_unit(whole_ms: int, text: str) -> None:
    assert duration_text(whole_ms) == text


def test_less_than_a_millisecond_is_refused() -> None:
    with pytest.raises(InputError):
        milliseconds(0.0001)
