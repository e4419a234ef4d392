"""A fault explains a second execution when it met the task since the grant of the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chaos.checks.check import CheckResult
from chaos.checks.executions import as_meant, deaths_proven, executions
from chaos.checks.history_index import HistoryIndex
from chaos.history import HistoryEntry, Type, post_of
from tests.unit.chaos.histories import indexed, span

NODE = "workflow:node"
BROKER_STOP = span(12.0, 13.0, "chaos", "stop", "broker")


def ran(agent: str, at: float, fence: int) -> list[HistoryEntry]:
    facts: dict[str, Any] = {"agent": agent, "attempt": 1, "fence": fence}
    granted = {**facts, "state": "working", "version": fence}
    grant = HistoryEntry(at - 5.0, "dispatcher-1", Type.OK, "state", NODE, granted)
    return [grant, *span(at, at + 0.1, agent, "execute", NODE, **facts)]


def judged(check: Callable[[HistoryIndex], CheckResult], *entries: HistoryEntry) -> bool:
    return check(indexed(*entries)).passed


def alone(t: float, life: str) -> HistoryEntry:
    """An agent ends by itself."""
    return HistoryEntry(t, "chaos", Type.INFO, "trouble", post_of(life), {"life": life, "reason": "no broker"})


def died(at: float, agent: str = "agent-2-0a1b") -> HistoryEntry:
    return HistoryEntry(at, "dispatcher-1", Type.OK, "died", NODE, {"agent": agent})


@pytest.mark.parametrize(("broke_at", "passed"), [(6.0, True), (12.0, True), (2.0, False), (21.0, False)])
def test_fault_counts_from_the_grant_of_the_first_execution_to_the_beginning_of_the_last(
    broke_at: float, passed: bool
) -> None:
    fault = span(broke_at, broke_at + 1.0, "chaos", "stop", "broker")

    assert judged(executions, *ran("agent-1", 10.0, 1), *ran("agent-2", 20.0, 2), *fault) is passed


@pytest.mark.parametrize(("broke", "many", "passed"), [(True, 10, True), (True, 11, False), (False, 6, False)])
def test_fault_may_have_doubled_a_foreign_message_all_of_whose_executions_fail(
    broke: bool, many: int, passed: bool
) -> None:
    key, told = "stranger-15-c92c429c", span(11.0, 11.0, "chaos", "stranger", "stranger-15-c92c429c")
    for t in range(14, 14 + many):
        told += span(t, t + 0.1, "agent-1#6", "execute", key, Type.FAIL, attempt=1)

    assert judged(executions, *told, *(BROKER_STOP if broke else ())) is passed


def drained(life: str, asked_at: float, at: float) -> list[HistoryEntry]:
    """An agent that a task asks to end, until it has ended in an orderly way."""
    return [
        HistoryEntry(asked_at, life, Type.OK, "terminate", "suicide"),
        HistoryEntry(at, "chaos", Type.INFO, "restart", post_of(life), {"life": life, "reason": ""}),
    ]


@pytest.mark.parametrize(
    ("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("agent-3#9", False), ("", False)]
)
def test_agent_that_ends_by_itself_during_a_fault_of_a_server_counts_beside_the_fault(life: str, passed: bool) -> None:
    runs = [*ran("agent-1#6", 10.0, 1), *ran("agent-2#7", 14.0, 2), *ran("agent-1#6", 20.0, 3)]

    assert judged(executions, *runs, *BROKER_STOP, *([alone(24.0, life)] if life else ())) is passed


@pytest.mark.parametrize(
    ("asked_at", "agent", "passed"),
    [(14.0, "agent-2", True), (50.0, "agent-2", False), (10.05, "agent-3", False), (2.0, "agent-1", False)],
    ids=["amid its execution", "long after it", "an agent that never had it", "before it"],
)
@pytest.mark.parametrize("outcome", [Type.INFO, Type.OK])
def test_agent_that_drains_excuses_only_that_what_it_gave_back_is_executed_again(
    outcome: Type, asked_at: float, agent: str, passed: bool
) -> None:
    facts = {"agent": "agent-2-0a1b", "attempt": 1, "fence": 1}
    first = span(10.0, 13.0 if outcome is Type.OK else 15.0, "agent-2#7", "execute", NODE, outcome, **facts)
    ended = drained(f"{agent}#7", asked_at, asked_at + 8.0)  # a busy machine ends it late

    excused = judged(executions, *first, *ran("agent-1#6", 16.0, 2), *ended)

    assert excused is (passed and outcome is not Type.OK)


@pytest.mark.parametrize(("act", "excused"), [("kill", True), ("drain", False)])
def test_agent_that_drains_uses_up_no_attempt(act: str, excused: bool) -> None:
    facts = {"nodes": {"node": []}, "most": 1, "ends": ["completed"]}
    accepted = HistoryEntry(1.0, "client", Type.OK, "accept", "workflow", facts)
    end = span(10.05, 11.0, "chaos", "kill", "agent-1") if act == "kill" else drained("agent-1#7", 10.05, 11.0)
    given_up = [
        HistoryEntry(12.0, "dispatcher-1", Type.OK, "state", NODE, {"state": "dead", "version": 12}),
        HistoryEntry(13.0, "client", Type.OK, "end", "workflow", {"state": "failed"}),
    ]

    assert judged(as_meant, accepted, *ran("agent-1#7", 10.0, 1), *end, *given_up) is excused


@pytest.mark.parametrize(("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("", False)])
@pytest.mark.parametrize("how", ["trouble", "restart"])
def test_attempt_may_have_died_with_an_agent_that_ended_by_itself(life: str, passed: bool, how: str) -> None:
    ended = drained(life, 19.0, 24.0) if how == "restart" else [alone(24.0, life)]
    begun = HistoryEntry(10.0, "agent-2#7", Type.INVOKE, "execute", NODE, {"agent": "agent-2-0a1b", "fence": 1})

    assert judged(deaths_proven, begun, died(20.0), *(ended if life else ())) is passed


@pytest.mark.parametrize(("agent", "passed"), [("agent-1-0a1b", True), ("agent-1-zz", False)])
def test_agent_that_drained_excuses_neither_eviction_nor_death_of_the_next_one_of_its_post(
    agent: str, passed: bool
) -> None:
    lives = [
        HistoryEntry(t, life, Type.INVOKE, "execute", NODE, {"agent": one, "fence": fence})
        for t, life, one, fence in ((15.0, "agent-1#11", "agent-1-0a1b", 1), (30.0, "agent-1#12", "agent-1-zz", 2))
    ]
    ended = drained("agent-1#11", 18.0, 20.0)
    evicted = HistoryEntry(100.0, "dispatcher-1", Type.OK, "evict", agent)

    assert judged(executions, *lives, *ended, evicted) is passed
    assert judged(deaths_proven, *lives, *ended, died(100.0, agent)) is passed


@pytest.mark.parametrize(("at", "passed"), [(4.0, True), (90.0, True), (3.0, False), (200.0, False)])
def test_agent_that_ended_long_before_or_after_a_task_s_executions_excuses_none(at: float, passed: bool) -> None:
    runs = [*ran("agent-1#6", 10.0, 1), *ran("agent-2#7", 14.0, 2)]

    assert judged(executions, *runs, alone(at, "agent-2#7")) is passed


@pytest.mark.parametrize(("at", "passed"), [(10.0, False), (13.0, True), (100.0, True), (200.0, False)])
def test_kill_excuses_the_eviction_and_the_recorded_death_of_its_victim_for_a_while(at: float, passed: bool) -> None:
    kill = span(12.0, 14.0, "chaos", "kill", "agent-1")
    evicted = HistoryEntry(at, "dispatcher-1", Type.OK, "evict", "agent-1-0a1b")

    assert judged(executions, *ran("agent-1", 11.0, 1), *kill, evicted) is passed
    assert judged(deaths_proven, *kill, died(at, "agent-1-0a1b")) is passed


@pytest.mark.parametrize(("at", "passed"), [(20.0, True), (200.0, False)])
def test_agent_that_ends_by_itself_long_after_a_recorded_death_does_not_prove_it(at: float, passed: bool) -> None:
    facts = {"agent": "agent-1-0a1b", "attempt": 1, "fence": 1}
    begun = HistoryEntry(10.0, "agent-1#7", Type.INVOKE, "execute", NODE, facts)

    assert judged(deaths_proven, begun, died(15.0, "agent-1-0a1b"), alone(at, "agent-1#7")) is passed


@pytest.mark.parametrize(("at", "passed"), [(2.0, False), (12.0, True), (30.0, False)])
def test_kill_permits_a_direct_task_more_attempts_only_amid_its_executions(at: float, passed: bool) -> None:
    accepted = HistoryEntry(4.0, "client", Type.OK, "accept", "task", {"most": 1})
    kill = [HistoryEntry(at + late, "chaos", Type.OK, "kill", "agent-1") for late in (0.0, 0.1)]
    first, second = (span(10.0 * n, 10.0 * n, "agent-1", "execute", "task", Type.FAIL, attempt=n) for n in (1, 2))

    assert judged(executions, accepted, *kill, *first, *second) is passed


@pytest.mark.parametrize(("at", "passed"), [(2.0, False), (12.0, True), (30.0, False)])
def test_restore_excuses_another_execution_only_between_the_first_and_the_last(at: float, passed: bool) -> None:
    restore = span(at, at, "client", "restore", "workflow")

    assert judged(executions, *ran("agent-1", 10.0, 1), *restore, *ran("agent-1", 20.0, 2)) is passed


@pytest.mark.parametrize(("accepted_at", "passed"), [(12.5, True), (15.0, False)])
def test_fault_during_the_acceptance_of_a_direct_task_may_have_doubled_it(accepted_at: float, passed: bool) -> None:
    accepted = HistoryEntry(accepted_at, "client", Type.OK, "accept", "task", {"most": 5})
    first, second = (
        span(at, at, agent, "execute", "task", agent=agent, attempt=1, fence=1)
        for agent, at in (("agent-1", 20.0), ("agent-2", 20.5))
    )

    assert judged(executions, *BROKER_STOP, accepted, *first, *second) is passed


@pytest.mark.parametrize(("outcome", "passed"), [(Type.INFO, True), (Type.OK, False), (None, False)])
def test_a_handoff_that_may_have_been_accepted_explains_one_more_execution(outcome: Type | None, passed: bool) -> None:
    offered = [] if outcome is None else span(10.1, 10.3, "agent-1", "hand off", "one", outcome)
    first = span(10.0, 10.4, "agent-1", "execute", "one")
    second = span(10.2, 10.9, "agent-2", "execute", "one")

    assert judged(executions, *first, *offered, *second) is passed
