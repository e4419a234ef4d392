"""The check that tasks with the same concurrency key run one at a time, as their capability's limit demands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from chaos.checks.check import CheckResult
from chaos.checks.executions import touches
from chaos.checks.history_index import HistoryIndex, Operation


def keys_exclude(index: HistoryIndex) -> CheckResult:
    """Check that no execution begins while another with the same key runs, unless a fault hit the running one.

    An agent that a fault kept from its heartbeats is taken for dead, and its keys are free; it may hear of that late.
    """
    runs: dict[str, list[Operation]] = defaultdict(list)
    for one in index.of("execute"):
        if one.val.get("alone"):
            runs[one.val["alone"]].append(one)
    violations, checked = list[str](), 0
    for key, found in runs.items():
        for place, one in enumerate(found):
            if not one.happened or touches(index, one.key, [one], since=one.begun, until=one.ended):
                continue
            checked += 1
            violations += [
                f"{other.key} began with the key {key} at {other.begun:.3f}, and {one.key} had it until {one.ended:.3f}"
                for other in _beside(found[place + 1 :], one)
            ]
    return CheckResult("keys exclude", "a key has one task at a time", checked, tuple(violations))


def _beside(later: Sequence[Operation], one: Operation) -> list[Operation]:
    return [other for other in later if other.first < one.last]
