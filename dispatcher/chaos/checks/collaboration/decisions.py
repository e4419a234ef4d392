"""The check that an approval is decided once, whoever answers it at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dispatcher.chaos.checks.check import CheckResult
from dispatcher.chaos.checks.history_index import HistoryIndex, Operation

ENDS: Mapping[str, str] = {"granted": "completed", "denied": "rejected"}
"""The state in which an approval ends, by the decision."""


def decided_once(index: HistoryIndex) -> CheckResult:
    """Check that each contested approval has one decision, and that all that is known of it says the same.

    The audit trail has the decision; the approval's state, the answers that were confirmed to people, and whether the
    next node ran must agree with it.
    """
    checked, violations = 0, list[str]()
    answers: dict[str, list[Operation]] = {}
    for one in index.of("answer"):
        answers.setdefault(one.val["node"], []).append(one)
    states = {one.key: one.val["state"] for one in index.of("result")}
    for work in index.accepted:
        for name, following in (work.val.get("contested") or {}).items():
            key, runs = f"{work.key}:{name}", index.about("execute", f"{work.key}:{following}")
            checked += 1
            violations += (f"{key} {told}" for told in _wrong(index, key, answers.get(key, []), states.get(key)))
            if runs and states.get(key) != "completed":
                violations.append(f"{key} is {states.get(key)}, and {following} ran")
    return CheckResult("decided once", "the first answer counts, for all", checked, tuple(violations))


def _wrong(index: HistoryIndex, key: str, answers: list[Operation], state: str | None) -> Iterator[str]:
    trail = [(one.val["decision"], one.val["by"]) for one in index.about("decision", key)]
    decided = [(decision, by) for decision, by in trail if decision in ENDS]
    if len(decided) != 1:
        yield f"is {state}, and its trail has {len(decided)} decisions: {sorted(decided)}"
        return
    ((decision, by),) = decided
    if state != ENDS[decision]:
        yield f"was {decision} by {by}, and is {state}"
    for one in answers:
        said = ("granted" if one.val["granted"] else "denied", one.val["by"])
        if one.happened and said != (decision, by):
            yield f"was {decision} by {by}, and {said[1]} was told that it is {said[0]}"
