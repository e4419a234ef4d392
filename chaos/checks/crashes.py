"""The promise that no process crashes, judged by how processes ended that were not killed."""

from __future__ import annotations

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex


def no_crash(index: HistoryIndex) -> CheckResult:
    """Check that no process crashed, or ended by itself in an orderly way without a task that asked for it.

    A crash shows an unexpected error, such as a traceback in the process's log.
    """
    crashes = [f"{one.key} ended with {one.val['reason'].splitlines()[-1]}" for one in index.of("crash")]
    asked = {one.proc for one in index.of("terminate")}
    ends = (one for one in index.of("restart") if "life" in one.val and one.val["life"] not in asked)
    crashes += [f"{one.key} ended at {one.begun:.3f} without an error, and no task asked for that" for one in ends]
    return CheckResult("no crash", "a process ends with a reason", len(index.processes), tuple(crashes))
