"""The promise that no process crashes, judged by how processes ended that were not killed."""

from __future__ import annotations

from dispatcher.chaos.checks.check import CheckResult
from dispatcher.chaos.checks.history_index import HistoryIndex


def no_crash(index: HistoryIndex) -> CheckResult:
    """Check that no process crashed: ended by itself with an unexpected error, such as a traceback in its log."""
    crashes = [f"{one.key} ended with {one.val['reason'].splitlines()[-1]}" for one in index.of("crash")]
    return CheckResult("no crash", "a process ends with a reason", len(index.processes), tuple(crashes))
