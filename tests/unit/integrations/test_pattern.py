"""Patterns of strangers are matched at once, or refused."""

from __future__ import annotations

import pytest

from coditect.errors import InputError
from coditect.integrations.pattern import matcher


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [("b", "abc", True), ("^b", "abc", False), ("", "", True), (r"^\d+$", "12\n", False), (r"^\u00e9\/$", "é/", True)],
)
def test_pattern_matches_anywhere_in_a_text_unless_it_is_anchored(pattern: str, text: str, matches: bool) -> None:
    assert matcher(pattern)(text) is matches


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(", "((a{1000}){1000}){1000}"])
def test_pattern_without_a_bound_is_refused_with_what_to_do(pattern: str) -> None:
    with pytest.raises(InputError, match="bounded time") as refused:
        matcher(pattern)

    assert refused.value.facts["fix"]
