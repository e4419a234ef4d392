"""When two tasks of one key count as running at once."""

from __future__ import annotations

import pytest

from chaos.checks.coordination.keys import keys_exclude
from chaos.checks.executions import executions
from chaos.history import HistoryEntry, Type
from tests.unit.chaos.histories import indexed, span
from tests.unit.chaos.keyed import ran


@pytest.mark.parametrize(("begun", "passed"), [(11.1, True), (10.9, False)])
def test_a_task_begins_when_the_one_before_it_of_its_key_has_ended(begun: float, passed: bool) -> None:
    check = keys_exclude(indexed(*ran("one", "agent-1", 10.0, 11.0), *ran("other", "agent-2", begun, 12.0)))

    assert (check.checked, check.passed) == (2, passed)


@pytest.mark.parametrize(("agent", "passed"), [("agent-1", True), ("agent-3", False)])
def test_an_agent_that_stood_still_has_lost_its_key_and_another_one_s_fault_excuses_nothing(
    agent: str, passed: bool
) -> None:
    fault = span(10.2, 10.8, "chaos", "stop", agent)
    both = (*ran("one", "agent-1", 10.0, 11.0), *ran("other", "agent-2", 10.5, 10.9))

    assert keys_exclude(indexed(*both, *fault)).passed is passed


@pytest.mark.parametrize(("accepted_at", "passed"), [(1.0, True), (9.0, False)])
def test_a_fault_may_have_met_a_task_since_its_acceptance_because_it_waits_for_its_key(
    accepted_at: float, passed: bool
) -> None:
    accepted = HistoryEntry(accepted_at, "client", Type.OK, "accept", "one", {"most": 5})
    twice = (*ran("one", "agent-1", 10.0, 11.0), *ran("one", "agent-2", 11.5, 12.0))

    assert executions(indexed(accepted, *twice, *span(2.0, 7.0, "chaos", "stop", "agent-1"))).passed is passed
