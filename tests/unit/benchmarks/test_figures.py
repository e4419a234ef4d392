from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.figures import median, percentile, ratio, rounded

NUMBERS = st.floats(min_value=-1e9, max_value=1e9)


@pytest.mark.parametrize(("share", "value"), [(1, 1), (50, 50), (50.5, 51), (99, 99), (99.1, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    values = list(range(100, 0, -1))

    assert percentile(values, share) == value


def test_percentile_of_few_values_is_one_of_them() -> None:
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert percentile([1.0, 2.0], 99) == 2.0


@given(st.lists(NUMBERS, min_size=1), st.floats(min_value=0.01, max_value=100))
def test_percentile_is_measured_and_not_exceeded_by_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)

    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) / 100 - 1e-9


@pytest.mark.parametrize("share", [0, -1, 100.1])
def test_percentile_of_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], share)


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_median_of_odd_and_even_numbers() -> None:
    assert median([9.0, 1.0, 5.0]) == 5.0
    assert median([9.0, 1.0, 5.0, 6.0]) == 5.5


def test_ratio_is_that_of_the_medians() -> None:
    assert ratio([30.0, 10.0, 20.0], [5.0, 100.0, 10.0]) == 2.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, 0.0), (1234.56, 1235.0), (0.000123456, 0.0001235), (-9.87654, -9.877), (99.996, 100.0)],
)
def test_rounded_keeps_four_digits(value: float, shown: float) -> None:
    assert rounded(value) == pytest.approx(shown, rel=1e-12)
