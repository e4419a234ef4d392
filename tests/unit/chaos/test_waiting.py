"""When waiting is counted, and from when."""

from __future__ import annotations

import pytest

from chaos.checks.history_index import HistoryIndex
from chaos.checks.recovery import recovered
from chaos.checks.waits import BETWEEN_P2S, CALM_SECONDS, MOST_BEFORE_P0, MOST_BEFORE_P2, p0_soon, p2_progress
from chaos.history import HistoryEntry, Type
from tests.unit.chaos.histories import indexed

READY_AT = 100.0


def backlog(many: int, *, priority: str, first_at: float) -> list[HistoryEntry]:
    """Tasks that could be executed from then on, and start one after the other once the one in question waits."""
    names = [f"{priority} {one}" for one in range(many)]
    accepted = [HistoryEntry(first_at, "client", Type.OK, "accept", name, {"priority": priority}) for name in names]
    return accepted + [
        HistoryEntry(READY_AT + 0.001 * (place + 1), "agent-1", Type.OK, "execute", name)
        for place, name in enumerate(names)
    ]


def waiting(priority: str, *more: HistoryEntry) -> HistoryIndex:
    accepted = HistoryEntry(READY_AT, "client", Type.OK, "accept", "task", {"priority": priority})
    started = HistoryEntry(READY_AT + 3.0, "agent-1", Type.OK, "execute", "task")
    return indexed(accepted, started, *more)


@pytest.mark.parametrize(("many", "passed"), [(MOST_BEFORE_P0, True), (MOST_BEFORE_P0 + 1, False)])
def test_p0_is_started_before_a_backlog_that_was_there_before_it(many: int, passed: bool) -> None:
    check = p0_soon(waiting("p0", *backlog(many, priority="p2", first_at=50.0)))

    assert (check.checked, check.passed) == (1, passed)


@pytest.mark.parametrize("at", [READY_AT - CALM_SECONDS + 0.1, READY_AT + 1.0])
def test_nobody_is_judged_while_something_is_broken_nor_soon_after(at: float) -> None:
    killed = HistoryEntry(at, "chaos", Type.OK, "kill", "agent-1", {"kind": "agent.kill"})

    assert p0_soon(waiting("p0", *backlog(100, priority="p2", first_at=50.0), killed)).checked == 0
    assert p2_progress(waiting("p2", *backlog(1_000, priority="p1", first_at=READY_AT + 0.0001), killed)).checked == 0


def test_neither_a_drain_nor_a_later_p2_excuses_a_wait_but_other_p0s_do() -> None:
    restarted = HistoryEntry(READY_AT + 1.0, "chaos", Type.INFO, "restart", "agent-1", {"life": "agent-1#7"})

    assert not p0_soon(waiting("p0", *backlog(100, priority="p2", first_at=50.0), restarted)).passed

    assert not p2_progress(
        waiting("p2", *backlog(MOST_BEFORE_P2 + 1, priority="p2", first_at=READY_AT + 0.0001))
    ).passed

    assert p0_soon(waiting("p0", *backlog(100, priority="p0", first_at=50.0))).passed


@pytest.mark.parametrize(("priority", "passed"), [("p1", False), ("p0", True)])
def test_p0_does_not_wait_while_many_of_lower_priority_go_on(priority: str, passed: bool) -> None:
    facts = {"priority": priority}
    going_on = [
        HistoryEntry(READY_AT + 0.001 * one, "agent-1", Type.OK, "go on", f"parent{one}", facts)
        for one in range(1, MOST_BEFORE_P0 + 2)
    ]

    assert p0_soon(waiting("p0", *going_on)).passed is passed


@pytest.mark.parametrize(
    ("many", "first_at", "passed"),
    [(MOST_BEFORE_P2, READY_AT + 0.0001, True), (MOST_BEFORE_P2 + 1, READY_AT + 0.0001, False), (1_000, 50.0, True)],
)
def test_p2_is_overtaken_by_so_many_and_waits_for_those_before_it(many: int, first_at: float, passed: bool) -> None:
    check = p2_progress(waiting("p2", *backlog(many, priority="p1", first_at=first_at)))

    assert (check.checked, check.passed) == (1, passed)


@pytest.mark.parametrize(("more", "passed"), [(0, True), (1, False)])
def test_p2_is_overtaken_by_a_round_more_for_each_p2_before_it(more: int, passed: bool) -> None:
    before = backlog(10, priority="p2", first_at=50.0)
    later = backlog(MOST_BEFORE_P2 + 10 * BETWEEN_P2S + more, priority="p1", first_at=READY_AT + 0.0001)

    assert p2_progress(waiting("p2", *before, *later)).passed is passed


def test_node_waits_from_when_the_ledger_says_that_it_can_be_executed() -> None:
    accepted = HistoryEntry(0.0, "client", Type.OK, "accept", "w", {"nodes": {"n": []}, "priorities": {"n": "p0"}})
    ready = HistoryEntry(READY_AT, "dispatcher-1", Type.OK, "state", "w:n", {"state": "ready", "version": 1})
    ran = HistoryEntry(READY_AT + 3.0, "agent-1", Type.OK, "execute", "w:n")
    before = [HistoryEntry(10.0 + one, "agent-1", Type.OK, "execute", f"other{one}") for one in range(40)]
    others = backlog(10, priority="p1", first_at=50.0)

    check = p0_soon(indexed(accepted, ready, ran, *before, *others))

    assert (check.checked, check.passed) == (1, True)


@pytest.mark.parametrize(("name", "passed"), [("next", False), ("first.compensate", True)])
def test_node_that_a_dead_dispatcher_held_up_is_late_but_a_compensation_waits_for_the_workflow_to_fail(
    name: str, passed: bool
) -> None:
    facts = {"nodes": {"first": [], name: ["first"]}, "undo": ["first"]}
    check = recovered(
        indexed(
            HistoryEntry(0.0, "chaos", Type.OK, "kill", "dispatcher-1", {"kind": "dispatcher.kill"}),
            HistoryEntry(1.0, "client", Type.OK, "accept", "run", facts),
            HistoryEntry(5.0, "agent-1", Type.OK, "execute", "run:first"),
            HistoryEntry(9.0, "dispatcher-2", Type.OK, "state", f"run:{name}", {"state": "ready"}),
        )
    )

    assert check.passed is passed
