"""The check that executions begin no more often than the rate of their capability allows, in the whole fleet."""

from __future__ import annotations

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation

SLACK_SECONDS = 0.05
"""The time from the use of a token to the record of the execution that it began, with the coarseness of clocks."""


def rate_kept(index: HistoryIndex) -> CheckResult:
    """Check that in any time span at most 1 + burst + rate * span executions begin; a Redis wipe adds a burst."""
    begun = index.of("begin")
    wipes = [one for one in index.faults if one.val.get("kind") == "redis.wipe"]
    violations = list[str]()
    for place, first in enumerate(begun):
        for many, last in enumerate(begun[place:], 1):
            if many > _most(first, last, wipes):
                seconds = last.begun - first.begun
                violations.append(
                    f"{many} executions of {first.key} began in {seconds:.3f} s from {first.begun:.3f} on"
                )
                break
    return CheckResult("rate kept", "a fleet begins no more often", len(begun), tuple(violations))


def _most(first: Operation, last: Operation, wipes: list[Operation]) -> float:
    bursts = 1 + sum(wipe.begun <= last.begun and wipe.ended >= first.begun for wipe in wipes)
    span = last.begun - first.begun + SLACK_SECONDS
    return float(first.val["per_second"]) * span + 1 + bursts * int(first.val["burst"])
