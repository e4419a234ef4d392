"""When a task that was handed off may be executed once more."""

from __future__ import annotations

import pytest

from dispatcher.chaos.checks.executions import executions
from dispatcher.chaos.checks.history_index import HistoryIndex
from dispatcher.recorder.history import HistoryEntry, Type


def ran(agent: str, begun: float, ended: float) -> list[HistoryEntry]:
    return [
        HistoryEntry(begun, agent, Type.INVOKE, "execute", "one"),
        HistoryEntry(ended, agent, Type.OK, "execute", "one"),
    ]


@pytest.mark.parametrize(("outcome", "passed"), [(Type.INFO, True), (Type.OK, False), (None, False)])
def test_a_handoff_that_may_have_been_accepted_explains_one_more_execution(outcome: Type | None, passed: bool) -> None:
    offered = [HistoryEntry(10.1, "agent-1", Type.INVOKE, "hand off", "one")] if outcome is not None else []
    ended = [HistoryEntry(10.3, "agent-1", outcome, "hand off", "one")] if outcome is not None else []
    both = [*ran("agent-1", 10.0, 10.4), *offered, *ended, *ran("agent-2", 10.2, 10.9)]

    assert executions(HistoryIndex(sorted(both, key=lambda one: one.t))).passed is passed
