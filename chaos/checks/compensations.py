"""The promise about compensations: exactly what had completed is undone, the last completed node first."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation
from coditect.workflow.definition import COMPENSATION

UNDONE = frozenset({"compensated", "compensation_failed"})


def undone_in_reverse(index: HistoryIndex) -> CheckResult:
    """Check that a compensated workflow undid its completed nodes one by one in reverse order, and any other one none.

    After a compensation that failed nothing more is undone. Who executed what is read from the agents' records.
    """
    checked, violations = 0, []
    states = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        names = work.val.get("undo") or ()
        if not names or states.get(work.key) is None:
            continue
        checked += 1
        owed = _completed(index, work, names)[::-1] if states[work.key] in UNDONE else []
        undone = _executed(index, work, names)
        if undone != (owed if states[work.key] != "compensation_failed" else owed[: len(undone)]):
            violations.append(f"{work.key} is {states[work.key]}, undid {undone}, and had to undo {owed}")
        violations += _overlapping(index, work, undone)
    return CheckResult("undone in reverse", "what completed is undone, the last first", checked, tuple(violations))


def _completed(index: HistoryIndex, work: Operation, names: Sequence[str]) -> list[str]:
    """Return those of the given nodes that completed, in the order in which the ledger recorded it."""
    ends = {one.key: one.val["state"] for one in index.of("result")}
    order: dict[str, tuple[int, int]] = {}
    for name in names:
        known = [one for one in index.versioned("state", f"{work.key}:{name}") if one.val["state"] == "completed"]
        if ends.get(f"{work.key}:{name}") == "completed" and known:
            order[name] = known[-1].val["version"], known[-1].first
    return sorted(order, key=lambda name: order[name])


def _executed(index: HistoryIndex, work: Operation, names: Sequence[str]) -> list[str]:
    """Return those of the given nodes whose compensation was executed to its end, in the order of their starts."""
    first: dict[str, int] = {}
    for name in names:
        runs = index.about("execute", f"{work.key}:{name}{COMPENSATION}")
        if any(one.happened for one in runs):
            first[name] = runs[0].first
    return sorted(first, key=lambda name: first[name])


def _overlapping(index: HistoryIndex, work: Operation, undone: Sequence[str]) -> list[str]:
    violations = []
    for before, after in pairwise(undone):
        ends = (one.last for one in index.about("execute", f"{work.key}:{before}{COMPENSATION}") if one.happened)
        if min(ends) > index.about("execute", f"{work.key}:{after}{COMPENSATION}")[0].first:
            violations.append(f"{work.key} undid {after} before {before} was undone")
    return violations
