"""The figures of `make autonomy`: what they count, and when they are not enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.autonomy import PATIENT, POLICY, AutonomyOrder, AutonomyResult, MixedLoad, _patient
from chaos.load.work import CAPABILITY
from coditect.client.approvals import AuditRow, FinishedCounts
from coditect.workflow.approvals.file import read_policy


def entry(number: int, risk: str) -> AuditRow:
    return AuditRow(1, f"w{number}", "act", "granted", "policy", True, "", CAPABILITY, risk, risk, "", {})


def result(**changed: Any) -> AutonomyResult:
    trail = tuple(entry(number, "low" if number % 3 else "medium") for number in range(40))
    order = AutonomyOrder(1, 100, 24, Path("unused"))
    known = AutonomyResult(order, Counter(completed=100), FinishedCounts(100, 100, 4), trail, faults=60, seconds=60.0)
    return replace(known, **changed)


def test_the_figures_are_those_of_counters_and_trail() -> None:
    found = {name: value for name, value, _ in result().rates()}

    assert found == {
        "autonomy": 0.96,
        "completion": 1.0,
        "workflows with an approval": 0.4,
        "of these at medium or high risk": 14 / 40,
        "faults a second": 1.0,
    }
    assert result().passed


@pytest.mark.parametrize(
    "changed",
    [
        {"counted": FinishedCounts(100, 100, 6)},
        {"counted": FinishedCounts(99, 99, 1)},
        {"ended": Counter(completed=98, failed=2)},
        {"trail": tuple(entry(number, "low") for number in range(40))},
        {"trail": tuple(entry(number, "high") for number in range(29))},
        {"faults": 59},
    ],
    ids=["by hand", "not counted", "failed", "no risk", "few approvals", "few faults"],
)
def test_a_figure_that_is_not_reached_fails_the_measurement(changed: dict[str, Any]) -> None:
    assert not result(**changed).passed


def test_the_drawn_workflows_have_the_approvals_that_the_policy_is_about() -> None:
    load = MixedLoad.__new__(MixedLoad)
    MixedLoad.__init__(load, None, AutonomyOrder(1, 1, 1, Path("unused")))  # type: ignore[arg-type]
    flows = [_patient(load._drawn().definition()) for _ in range(300)]
    guarded = Counter(flow.name for flow in flows if flow.name.startswith("guarded-"))
    rules = read_policy(POLICY.encode()).rules

    assert guarded.keys() == {rule.workflow for rule in rules}
    assert 0.3 <= guarded.total() / 300 <= 0.5
    retries = [node.call.retry for flow in flows for node in flow.nodes if node.call is not None]
    assert all(retry == PATIENT for retry in retries)
