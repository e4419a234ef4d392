"""The promise that a task which ends its agents, or does not end when it is canceled, ends itself after few of them."""

from __future__ import annotations

from chaos.checks.check import CheckResult
from chaos.checks.executions import repeats
from chaos.checks.history_index import HistoryIndex, Operation
from chaos.load.parts.poison import REASONS

UNMARKED = 2
"""The ends of agents beyond a task's attempts after which the task runs in a process of its own."""


def poison_contained(index: HistoryIndex) -> CheckResult:
    """Check that such a task fails for its own reason, and ends at most two more agents than it has attempts.

    Each fault of a server or an agent meanwhile may have cost one more: Redis has the marks of starts, the broker has
    the counts of deliveries, and an agent may be parted from both. It is executed as often as it has attempts, and
    again only for a fault that touched it or an agent that drained: each may leave a copy that has all its attempts.
    """
    poisoned = [one for one in index.accepted if "poison" in one.val]
    violations = list[str]()
    for work in poisoned:
        for end in index.about("failed", work.key):
            if end.val["reason"] not in REASONS[work.val["poison"]]:
                violations.append(f"{work.key} ({work.val['poison']}) failed with the reason {end.val['reason']!r}")
        ends = index.about("terminate", work.key)
        if len(ends) > work.val["most"] + UNMARKED + _faults(index, work):
            violations.append(f"{work.key} ended {len(ends)} agents, the last at {ends[-1].begun:.3f}")
        runs = index.about("execute", work.key)
        if runs and len(runs) > work.val["most"] * (1 + repeats(index, work.key, runs)):
            violations.append(f"{work.key} ran {len(runs)} times, the last at {runs[-1].begun:.3f}")
    return CheckResult("poison contained", "a task ends few agents, then itself", len(poisoned), tuple(violations))


def _faults(index: HistoryIndex, work: Operation) -> int:
    """Return how many faults of servers and agents there were from the acceptance of a task to its end."""
    until = max((one.begun for one in index.about("end", work.key)), default=float("inf"))
    faults = (one for one in index.faults if not one.key.startswith("dispatcher"))
    return sum(one.begun <= until and one.ended >= work.begun for one in faults)
