"""A fault explains a second execution when it met the task since the grant of the first."""

from __future__ import annotations

import pytest

from dispatcher.chaos.checks.executions import deaths_proven, executions
from dispatcher.chaos.checks.history_index import HistoryIndex
from dispatcher.recorder.history import HistoryEntry, Type

NODE = "workflow:node"
BROKER_STOP = [
    HistoryEntry(12.0, "chaos", Type.INVOKE, "stop", "broker"),
    HistoryEntry(13.0, "chaos", Type.OK, "stop", "broker"),
]


def ran(agent: str, at: float, fence: int) -> list[HistoryEntry]:
    facts = {"agent": agent, "attempt": 1, "fence": fence}
    granted = {**facts, "state": "working", "version": fence}
    return [
        HistoryEntry(at - 5.0, "dispatcher-1", Type.OK, "state", NODE, granted),
        HistoryEntry(at, agent, Type.INVOKE, "execute", NODE, facts),
        HistoryEntry(at + 0.1, agent, Type.OK, "execute", NODE, facts),
    ]


@pytest.mark.parametrize(("broke_at", "passed"), [(6.0, True), (12.0, True), (2.0, False), (21.0, False)])
def test_fault_counts_from_the_grant_of_the_first_execution_to_the_beginning_of_the_last(
    broke_at: float, passed: bool
) -> None:
    fault = [
        HistoryEntry(broke_at, "chaos", Type.INVOKE, "stop", "broker"),
        HistoryEntry(broke_at + 1.0, "chaos", Type.OK, "stop", "broker"),
    ]
    entries = [*ran("agent-1", 10.0, 1), *ran("agent-2", 20.0, 2), *fault]

    assert executions(HistoryIndex(sorted(entries, key=lambda one: one.t))).passed is passed


@pytest.mark.parametrize(
    ("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("agent-3#9", False), ("", False)]
)
def test_agent_that_ends_by_itself_during_a_fault_of_a_server_counts_beside_the_fault(life: str, passed: bool) -> None:
    ended = [HistoryEntry(24.0, "chaos", Type.INFO, "trouble", "agent-2", {"life": life, "reason": "no broker"})]
    runs = [*ran("agent-1#6", 10.0, 1), *ran("agent-2#7", 14.0, 2), *ran("agent-1#6", 20.0, 3)]
    entries = [*runs, *BROKER_STOP, *(ended if life else ())]

    assert executions(HistoryIndex(sorted(entries, key=lambda one: one.t))).passed is passed


@pytest.mark.parametrize(("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("", False)])
def test_attempt_may_have_died_with_an_agent_that_ended_by_itself(life: str, passed: bool) -> None:
    ended = [HistoryEntry(24.0, "chaos", Type.INFO, "trouble", "agent-2", {"life": life, "reason": "no broker"})]
    facts = {"agent": "agent-2-0a1b", "attempt": 1, "fence": 1}
    entries = [
        HistoryEntry(10.0, "agent-2#7", Type.INVOKE, "execute", NODE, facts),
        HistoryEntry(20.0, "dispatcher-1", Type.OK, "died", NODE, {"agent": "agent-2-0a1b"}),
        *(ended if life else ()),
    ]

    assert deaths_proven(HistoryIndex(entries)).passed is passed


@pytest.mark.parametrize(("accepted_at", "passed"), [(12.5, True), (15.0, False)])
def test_fault_during_the_acceptance_of_a_direct_task_may_have_doubled_it(accepted_at: float, passed: bool) -> None:
    accepted = HistoryEntry(accepted_at, "client", Type.OK, "accept", "task", {"most": 5})
    twice = [
        HistoryEntry(at, agent, type_, "execute", "task", {"agent": agent, "attempt": 1, "fence": 1})
        for agent, at in (("agent-1", 20.0), ("agent-2", 20.5))
        for type_ in (Type.INVOKE, Type.OK)
    ]
    entries = [*BROKER_STOP, accepted, *twice]

    assert executions(HistoryIndex(sorted(entries, key=lambda one: one.t))).passed is passed
