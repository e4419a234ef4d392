"""The checker of restores on a history in which an attempt stood still, and read shared state late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checks.coordination.restores import restored_whole
from chaos.checks.history_index import HistoryIndex
from chaos.history import HistoryEntry, Type
from tests.unit.chaos.collaborated import RESTORED, restored


def with_a_read_behind(entries: list[HistoryEntry], node: str) -> list[HistoryEntry]:
    """The history, with one more read of `left`, in which nothing is there, behind the first claim of a node."""
    place = next(n for n, one in enumerate(entries) if (one.f, one.key) == ("claim", f"{RESTORED}:{node}")) + 2
    saw = next(one for one in entries if (one.f, one.key) == ("saw", f"{RESTORED}:left"))
    late = replace(saw, t=entries[place - 1].t, val={**saw.val, "there": None})
    assert entries[place - 1].type is Type.OK
    return [*entries[:place], late, *entries[place:]]


def with_another_claim(entries: list[HistoryEntry], node: str) -> list[HistoryEntry]:
    """The history, in which a node is claimed once more at once, in the same run, for another attempt."""
    first = next(n for n, one in enumerate(entries) if (one.f, one.key) == ("claim", f"{RESTORED}:{node}"))
    claim, claimed = entries[first : first + 2]
    again = replace(claim, val={**claim.val, "version": claim.val["version"] + 1, "fence": claim.val["fence"] + 1})
    return [*entries[: first + 2], again, claimed, *entries[first + 2 :]]


@pytest.mark.parametrize(("node", "violations"), [("left", 1), ("join", 0)])
def test_a_read_counts_only_until_what_follows_its_node_is_claimed(node: str, violations: int) -> None:
    checked = restored_whole(HistoryIndex(with_a_read_behind(restored(0.0), node)))

    assert len(checked.violations) == violations


def test_a_read_does_not_count_once_its_node_is_claimed_again() -> None:
    entries = with_another_claim(with_a_read_behind(restored(0.0), "left"), "left")

    assert restored_whole(HistoryIndex(entries)).violations == ()
