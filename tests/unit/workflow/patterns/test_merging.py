"""The rules by which results are merged: exact examples, and properties against plain definitions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError
from coditect.workflow.patterns.merging import MergeRule, identity, merge

_VALUES = st.lists(st.sampled_from([None, True, False, 0, 1, 1.0, "a", "b", [1], [1.0], {"x": 1}, {"x": True}]))
_LISTS = st.lists(st.lists(st.integers(0, 4)), min_size=1, max_size=5)


def equal(one: Any, other: Any) -> bool:
    """Compare by the definition: types first, so that true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@given(_VALUES)
def test_the_majority_is_what_more_than_half_of_the_results_equal_and_else_there_is_none(values: list[Any]) -> None:
    present = [one for one in values if one is not None]
    winners = [one for one in present if 2 * sum(equal(one, other) for other in present) > len(present)]

    if not winners:
        with pytest.raises(InputError):
            merge(MergeRule.MAJORITY, values)
    else:
        assert json.dumps(merge(MergeRule.MAJORITY, values)) == json.dumps(winners[0])


@given(_VALUES.filter(lambda values: any(one is not None for one in values)))
def test_equal_weights_make_a_weighted_vote_a_majority(values: list[Any]) -> None:
    def outcome(rule: MergeRule, weights: list[float]) -> str:
        try:
            return json.dumps(merge(rule, values, weights=weights))
        except InputError as error:
            return error.sentence

    assert outcome(MergeRule.WEIGHTED, [0.1] * len(values)) == outcome(MergeRule.MAJORITY, [])


@given(_LISTS)
def test_union_and_intersection_are_those_of_sets_in_the_order_of_first_mention(lists: list[list[int]]) -> None:
    mentioned = list(dict.fromkeys(one for each in lists for one in each))

    assert merge(MergeRule.UNION, lists) == mentioned
    in_all = [one for one in dict.fromkeys(lists[0]) if all(one in each for each in lists)]
    assert merge(MergeRule.INTERSECTION, lists) == in_all


@given(_VALUES, _VALUES)
def test_two_values_have_one_identity_exactly_when_they_are_equal(one: list[Any], other: list[Any]) -> None:
    assert (identity(one) == identity(other)) is equal(one, other)


@given(_VALUES.filter(lambda values: any(one is not None for one in values)))
def test_missing_results_never_count(values: list[Any]) -> None:
    present = [one for one in values if one is not None]

    assert merge(MergeRule.COMBINE, values) == present
    assert json.dumps(merge(MergeRule.FIRST, values)) == json.dumps(present[0])
    assert json.dumps(merge(MergeRule.LAST, values)) == json.dumps(present[-1])


def test_what_has_no_winner_or_does_not_fit_the_rule_is_refused() -> None:
    with pytest.raises(InputError, match="more than half"):
        merge(MergeRule.MAJORITY, ["a", "b", "b", "a"])
    with pytest.raises(InputError, match="more than half"):
        merge(MergeRule.WEIGHTED, ["a", "b", "b"], weights=[0.3, 0.1, 0.2])

    with pytest.raises(InputError, match="Only a weighted vote"):
        merge(MergeRule.MAJORITY, ["a"], weights=[1.0])
    with pytest.raises(InputError, match="Too few"):
        merge(MergeRule.FIRST, [None, "a"], least=2)
    with pytest.raises(InputError, match="merges lists"):
        merge(MergeRule.UNION, [["a"], "a"])

    assert merge(MergeRule.WEIGHTED, [None, "a", "b"], weights=[9, 2, 1]) == "a"


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError):
        merge(MergeRule.WEIGHTED, ["a", "a"], weights=weights)
