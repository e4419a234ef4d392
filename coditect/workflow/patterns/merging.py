"""Merging of the results of several tasks into one value, by a deterministic rule.

A result that is missing is null and never counts. Two results are equal when their JSON is: the order of an object's
fields does not matter, `1` equals `1.0`, and `true` is not `1`. Where several equal results differ in writing, the one
that stands first is the value.

=============  ======================================================================================
rule           the value
=============  ======================================================================================
first, last    the first or last result
combine        the list of the results, in their order
union          every distinct element of the results, which are lists, in the order of first mention
intersection   every distinct element of the first list that is in all lists, in its order
majority       the result that more than half of the results equal; without one the merge is refused
weighted       the result whose votes weigh more than half of the weight of all results; else refused
=============  ======================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from fractions import Fraction
from math import isfinite
from typing import Any, assert_never

from coditect.errors import InputError

MAX_MERGED_VALUES = 10_000
"""The largest number of results in one merge."""


class MergeRule(StrEnum):
    """The rule by which results become one value."""

    FIRST = "first"
    LAST = "last"
    COMBINE = "combine"
    UNION = "union"
    INTERSECTION = "intersection"
    MAJORITY = "majority"
    WEIGHTED = "weighted"


def merge(rule: MergeRule, values: Sequence[Any], *, weights: Sequence[float] = (), least: int = 1) -> Any:
    """Merge the values that are not None into one by a rule; `weights`, one for each value, is only for `weighted`.

    Raises:
        InputError: when fewer than `least` results are there, when results or weights do not fit the rule, or when a
            vote has no winner; not retryable, since equal results merge equally.
    """
    if len(values) > MAX_MERGED_VALUES:
        raise InputError("There are too many results to merge", most=MAX_MERGED_VALUES, fix="merge fewer at once")
    exact = _weighed(rule, values, weights)
    present = [(value, weight) for value, weight in zip(values, exact, strict=True) if value is not None]
    if len(present) < max(1, least):
        fix = "look why the others are missing, or ask for fewer"
        raise InputError("Too few results came to merge them", present=len(present), least=max(1, least), fix=fix)
    results = [value for value, _ in present]
    match rule:
        case MergeRule.FIRST:
            return results[0]
        case MergeRule.LAST:
            return results[-1]
        case MergeRule.COMBINE:
            return results
        case MergeRule.UNION:
            return _distinct(element for listed in _lists(results) for element in listed)
        case MergeRule.INTERSECTION:
            first, *others = _lists(results)
            known = [{identity(element) for element in listed} for listed in others]
            return [element for element in _distinct(first) if all(identity(element) in listed for listed in known)]
        case MergeRule.MAJORITY | MergeRule.WEIGHTED:
            return _winner(present)
        case _:
            assert_never(rule)


def identity(value: Any) -> Any:
    """Return a hashable value that is equal for two JSON values exactly when these are equal."""
    match value:
        case bool() | str() | None:
            return (type(value).__name__, value)
        case int() | float():
            return ("number", value)
        case list():
            return ("list", tuple(identity(element) for element in value))
        case dict():
            return ("object", frozenset((key, identity(field)) for key, field in value.items()))
        case _:
            raise InputError("A result is no JSON", given=type(value).__name__, fix="return plain JSON")


def _weighed(rule: MergeRule, values: Sequence[Any], weights: Sequence[float]) -> list[Fraction]:
    """Return each value's weight as an exact fraction (0.1 + 0.2 = 0.3); it is 1 unless the rule is `weighted`."""
    if rule is not MergeRule.WEIGHTED:
        if weights:
            raise InputError("Only a weighted vote has weights", fix="leave `weights` out, or use the rule `weighted`")
        return [Fraction(1)] * len(values)
    if len(weights) != len(values):
        raise InputError("A weighted vote has one weight for each result", given=len(weights), fix="give as many")
    if any(not isfinite(weight) or weight < 0 for weight in weights):
        raise InputError("A weight is a number from 0 on", fix="correct the weights")
    return [Fraction(str(weight)) for weight in weights]


def _winner(ballots: Sequence[tuple[Any, Fraction]]) -> Any:
    values: dict[Any, Any] = {}
    votes: dict[Any, Fraction] = {}
    for value, weight in ballots:
        key = identity(value)
        values.setdefault(key, value)
        votes[key] = votes.get(key, Fraction(0)) + weight
    half = sum(votes.values(), Fraction(0)) / 2
    for key, count in votes.items():
        if count > half:
            return values[key]
    largest = [float(count) for count in sorted(votes.values(), reverse=True)[:5]]
    raise InputError(
        "No result has more than half of the votes", votes=largest, fix="ask more voters, or another capability"
    )


def _lists(results: Sequence[Any]) -> list[list[Any]]:
    if not all(isinstance(result, list) for result in results):
        raise InputError("This rule merges lists", fix="let each result be a list, or use the rule `combine`")
    return list(results)


def _distinct(elements: Iterable[Any]) -> list[Any]:
    kept: dict[Any, Any] = {}
    for element in elements:
        kept.setdefault(identity(element), element)
    return list(kept.values())
