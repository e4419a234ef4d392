from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coditect.errors import InputError, InvalidTask, Overloaded
from coditect.model.retry import RETRY_DELAYS_MS, Retry, retry_delay_ms

attempts = st.integers(1, 1_000)
chances = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("attempt", "ceiling"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1_000, 60)])
def test_ceiling_doubles_up_to_the_cap(attempt: int, ceiling: float) -> None:
    assert Retry(first="1s", cap="1m").ceiling_seconds(attempt) == ceiling


@given(attempts, chances)
def test_delay_lies_between_nothing_and_the_ceiling(attempt: int, chance: float) -> None:
    policy = Retry(first="250ms", cap="30s")

    delay = policy.delay_seconds(attempt, chance)

    assert 0 <= delay <= policy.ceiling_seconds(attempt) <= 30


@given(attempts)
def test_ceiling_never_shrinks_with_the_attempts(attempt: int) -> None:
    policy = Retry(first="10ms", cap="1h")

    assert policy.ceiling_seconds(attempt) <= policy.ceiling_seconds(attempt + 1)


@pytest.mark.parametrize("first", ["soon", "-1s", -1, float("nan"), 10**400])
def test_first_delay_that_is_no_duration_is_refused_where_it_is_written(first: str | float) -> None:
    with pytest.raises(InputError):
        Retry(first=first)


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"max_attempts": 1_001}, {"cap": "61m"}, {"cap": "never"}])
def test_policy_outside_its_ranges_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Retry(**wrong)  # type: ignore[arg-type]


def test_only_named_exceptions_and_errors_that_are_retryable_are_tried_again() -> None:
    policy = Retry(on=(OSError,))

    assert policy.allows(ConnectionError())
    assert not policy.allows(ValueError())

    assert Retry().allows(ValueError())
    assert Retry().allows(Overloaded("full"))
    assert not Retry().allows(InvalidTask("wrong"))
    assert not Retry().allows(KeyboardInterrupt())


@given(st.floats(0, 7_200), chances)
@example(0, 0.5)
@example(100_000, 0.5)
def test_retry_delay_exists_and_neighbours_the_wanted_delay(delay_seconds: float, chance: float) -> None:
    delay_ms = retry_delay_ms(delay_seconds, chance)

    wanted = delay_seconds * 1000
    below = max((one for one in RETRY_DELAYS_MS if one <= wanted), default=RETRY_DELAYS_MS[0])
    above = min((one for one in RETRY_DELAYS_MS if one >= wanted), default=RETRY_DELAYS_MS[-1])
    assert delay_ms in (below, above)


@given(st.floats(RETRY_DELAYS_MS[0] / 1000, RETRY_DELAYS_MS[-1] / 1000))
def test_mean_over_all_chances_is_the_wanted_delay(delay_seconds: float) -> None:
    draws = 1_000

    mean = sum(retry_delay_ms(delay_seconds, (draw + 0.5) / draws) for draw in range(draws)) / draws

    gap = max(upper - lower for lower, upper in pairwise(RETRY_DELAYS_MS) if lower <= delay_seconds * 1000)
    assert mean == pytest.approx(delay_seconds * 1000, abs=gap / draws)
