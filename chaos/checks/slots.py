"""The promise that a free slot takes a waiting task, judged in times without faults."""

from __future__ import annotations

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex
from chaos.checks.waits import is_calm

MOST_IDLE_SECONDS = 0.1


def no_idle_slot(index: HistoryIndex) -> CheckResult:
    """Invariant I6: check that in calm times no slot is free for over 100 ms while a task that it may start waits."""
    judged = [one for one in index.of("idle") if is_calm(index, one.begun, one.ended)]
    violations = [
        f"{one.key}, and took none from {one.begun:.2f} for {one.ended - one.begun:.2f} s"
        for one in judged
        if round(one.ended - one.begun, 6) > MOST_IDLE_SECONDS  # two looks of 50 ms are 100 ms, but not in binary
    ]
    return CheckResult("no idle slot", "a free slot takes what waits", len(judged), tuple(violations))
