"""Patterns of strangers are matched at once, or refused."""

from __future__ import annotations

import time

import pytest

from coditect.errors import InputError
from coditect.integrations.pattern import matcher


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [("b", "abc", True), ("^b", "abc", False), ("", "", True), (r"^\d+$", "12\n", False), (r"^\u00e9\/$", "é/", True)],
)
def test_pattern_matches_anywhere_in_a_text_unless_it_is_anchored(pattern: str, text: str, matches: bool) -> None:
    assert matcher(pattern)(text) is matches


def test_pattern_that_would_backtrack_is_matched_at_once() -> None:
    since = time.process_time()

    assert not matcher("^(a+)+$")("a" * 10_000 + "!")

    assert time.process_time() - since < 0.5


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "((a{1000}){1000}){1000}"])
def test_pattern_without_a_bound_is_refused_with_what_to_do(pattern: str) -> None:
    with pytest.raises(InputError, match="bounded time") as refused:
        matcher(pattern)

    assert refused.value.facts["fix"]
