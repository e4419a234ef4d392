"""The check that an approval is decided once, even when several people answer it at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from chaos.checks.check import CheckResult
from chaos.checks.executions import GIVEN_UP
from chaos.checks.history_index import HistoryIndex, Operation

ENDS: Mapping[str, str] = {"granted": "completed", "denied": "rejected"}
"""The state in which an approval ends, by the decision."""


def decided_once(index: HistoryIndex) -> CheckResult:
    """Check that each approval that several people answered has one decision, and that all records of it agree.

    The audit trail has the decision; the approval's state, the answers that were confirmed to people, and whether the
    next node ran must agree with it. An approval that failed with a node before it has none: nobody was asked.
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
            judge = _answered if _failed_before(work, name, states) else _wrong
            violations += (f"{key} {told}" for told in judge(index, key, answers.get(key, []), states.get(key)))
            if runs and states.get(key) != "completed":
                violations.append(f"{key} is {states.get(key)}, and {following} ran")
    return CheckResult("decided once", "the first answer counts, for all", checked, tuple(violations))


def _failed_before(work: Operation, name: str, states: Mapping[str, str]) -> bool:
    """Tell whether an approval failed because one of its predecessors failed."""
    before = (work.val.get("nodes") or {}).get(name, ())
    given_up = any(states.get(f"{work.key}:{one}") in GIVEN_UP for one in before)
    return given_up and states.get(f"{work.key}:{name}") == "failed"


def _answered(index: HistoryIndex, key: str, answers: list[Operation], state: str | None) -> Iterator[str]:
    if decided := [one.val["by"] for one in index.about("decision", key) if one.val["decision"] in ENDS]:
        yield f"is {state} since a node before it failed, and was decided by {', '.join(decided)}"
    for one in answers:
        if one.happened:
            yield f"is {state} since a node before it failed, and {one.val['by']} was told that the answer counts"


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
