"""A fault explains a second execution when it met the task since the grant of the first."""

from __future__ import annotations

import pytest

from dispatcher.chaos.checks.executions import executions
from dispatcher.chaos.checks.history_index import HistoryIndex
from dispatcher.recorder.history import HistoryEntry, Type

NODE = "workflow:node"


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
