"""A run passes when it kept every promise, and when that proves something."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.checks.check import CheckResult
from chaos.checks.coverage import FaultCoverage, Toll
from chaos.faults.schedule import AGENT_KILL, KINDS
from chaos.run import PROVING_SECONDS, RunOrder, RunVerdict

IDLE = CheckResult("DAG order", "a node runs after its predecessors", 0)
BUSY = CheckResult("nothing lost", "accepted work ends", 10)


def verdict(order: RunOrder) -> RunVerdict:
    hits = tuple(FaultCoverage(kind, 40, 30, 90) for kind in order.kinds)
    return RunVerdict(order, (BUSY, IDLE), Toll(hits, order.seconds), work=10, nodes=10, executions=10)


def test_long_run_of_all_faults_fails_when_a_checker_had_nothing_to_check() -> None:
    found = verdict(RunOrder(1, PROVING_SECONDS, Path("run")))

    assert found.kept
    assert (found.passed, found.objections) == (False, ("DAG order had nothing to check",))
    assert found.lines()[-1] == "proves nothing: DAG order had nothing to check"


@pytest.mark.parametrize(
    ("mutant", "broken", "caught"),
    [("skip_fence", "no stale write", True), ("skip_fence", "nothing lost", False), ("", "no stale write", False)],
)
def test_mutant_is_caught_by_who_looks_for_it_and_not_by_another_failure(
    mutant: str, broken: str, caught: bool
) -> None:
    checks = (CheckResult(broken, "", 1, ("it was broken",)), BUSY)
    order = RunOrder(1, PROVING_SECONDS, Path("run"), mutant=mutant)

    assert RunVerdict(order, checks, Toll((), 60.0), work=10, nodes=10, executions=10).caught == caught


@pytest.mark.parametrize(("seconds", "kinds"), [(PROVING_SECONDS - 1, tuple(KINDS)), (PROVING_SECONDS, (AGENT_KILL,))])
def test_short_run_and_one_of_few_faults_may_leave_a_checker_without_work(
    seconds: float, kinds: tuple[str, ...]
) -> None:
    found = verdict(RunOrder(1, seconds, Path("run"), kinds=kinds))

    assert found.passed
