"""The promise that no process crashes, judged by how processes ended that nobody had killed."""

from __future__ import annotations

from dispatcher.chaos.checks.check import CheckResult
from dispatcher.chaos.checks.history_index import HistoryIndex


def no_crash(index: HistoryIndex) -> CheckResult:
    """Check that a process which ends by itself gives its reason, and has not met an error that nobody expected."""
    crashes = [f"{one.key} ended with {one.val['reason'].splitlines()[-1]}" for one in index.of("crash")]
    return CheckResult("no crash", "a process ends with a reason", len(index.processes), tuple(crashes))
