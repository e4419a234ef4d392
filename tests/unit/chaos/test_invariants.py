"""Every checker finds the violation that it looks for, and no history of a fleet that kept its promises is flagged."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chaos.checks.check import CheckResult, lines
from chaos.checks.history_index import HistoryIndex
from chaos.checks.invariants import CHECKS, judge
from chaos.history import HistoryEntry, Type
from tests.unit.chaos.histories import clean_history, judged, look, span
from tests.unit.chaos.lies import LIES, a_completed_node

CHECKS_BY_NAME = {check(HistoryIndex([])).invariant: check for check in CHECKS}
RANDOMS = st.integers(0, 2**32).map(Random)


@given(RANDOMS)
@settings(max_examples=60, deadline=None)
def test_clean_history_is_never_flagged(random: Random) -> None:
    checks = judge(clean_history(random))

    assert [one.violations for one in checks] == [()] * len(CHECKS)
    assert all(one.checked for one in checks)


@pytest.mark.parametrize("lie", LIES)
@given(random=RANDOMS)
@settings(max_examples=3, deadline=None)
def test_planted_violation_is_found(lie: str, random: Random) -> None:
    invariant, tell = LIES[lie]
    entries = clean_history(random)
    about = a_completed_node(entries)
    assume(about)

    assert not CHECKS_BY_NAME[invariant](HistoryIndex(tell(entries, *about))).passed


def test_every_checker_has_a_lie_that_it_finds() -> None:
    assert {invariant for invariant, _ in LIES.values()} == CHECKS_BY_NAME.keys()


def wipe(begun: float, ended: float) -> list[HistoryEntry]:
    return span(begun, ended, "chaos", "wipe", "broker", kind="broker.wipe")


def executed(begun: float, ended: float) -> list[HistoryEntry]:
    return span(begun, ended, "agent-1", "execute", "task")


def called(begun: float, ended: float, outcome: Type = Type.OK) -> list[HistoryEntry]:
    return span(begun, ended, "agent-1", "call", "chaos", outcome, task="task")


def given_up(t: float) -> HistoryEntry:
    return HistoryEntry(t, "client", Type.INFO, "end", "task")


@pytest.mark.parametrize(
    ("what", "excused"),
    [
        ([], False),
        (wipe(2.0, 3.0), True),
        (wipe(0.2, 0.8), False),
        (wipe(0.5, 3.0), True),
        ([*executed(1.2, 1.5), *wipe(2.0, 3.0)], True),
        ([*executed(1.2, 1.5), *wipe(20.0, 21.0)], False),
        ([*executed(1.2, 15.5), *wipe(20.0, 21.0)], True),
        ([*wipe(2.0, 3.0), *executed(4.0, 5.0)], False),
        ([*executed(4.0, 5.0), given_up(61.0)], False),
        ([given_up(61.0), *executed(62.0, 63.0)], True),
        ([given_up(61.0), *executed(62.0, 63.0)[:1]], False),
        ([*executed(4.0, 5.0), given_up(61.0), *executed(62.0, 63.0)], False),
        ([*called(4.0, 5.0, Type.FAIL), given_up(61.0), *called(62.0, 63.0)], True),
        ([given_up(61.0), *called(62.0, 63.0, Type.FAIL)], False),
    ],
    ids=[
        "no wipe",
        "on its way",
        "the wipe was before",
        "accepted while the broker was away",
        "its answer on its way",
        "answered long before",
        "its answer on its way, late",
        "it was there afterwards",
        "its answer never came",
        "executed when nobody waited any more",
        "begun when nobody waited any more",
        "executed again when nobody waited any more",
        "called a dependency when nobody waited any more",
        "called a dependency in vain when nobody waited any more",
    ],
)
def test_direct_task_may_be_lost_with_the_broker_s_only_disk_while_it_is_there_and_may_be_late(
    what: list[HistoryEntry], excused: bool
) -> None:
    accepted = span(1.0, 1.1, "client", "accept", "task")

    assert judged("nothing lost", *accepted, *what).passed == excused


@pytest.mark.parametrize(("most", "excused"), [(2, True), (3, False)])
def test_direct_task_whose_last_attempt_failed_when_nobody_waited_any_more_was_late(most: int, excused: bool) -> None:
    entries = [
        HistoryEntry(1.0, "client", Type.OK, "accept", "task", {"most": most}),
        given_up(61.0),
        *span(62.0, 63.0, "agent-1", "execute", "task", Type.FAIL, attempt=2),
    ]

    assert judged("nothing lost", *entries).passed == excused


def test_judgement_tells_how_sure_one_may_be() -> None:
    passed = CheckResult("nothing lost", "accepted work ends", 1_000)
    failed = CheckResult("nothing lost", "accepted work ends", 1_000, tuple("abcdefg"))
    empty = CheckResult("nothing lost", "accepted work ends", 0)

    assert (passed.bound, failed.bound, empty.bound) == (0.003, None, None)
    assert "pass" in passed.line and "< 0.003 at 95 %" in passed.line
    assert lines([failed])[1:] == [*(f"        {one}" for one in "abcde"), "        and 2 more"]
    assert (empty.passed, "nothing to check" in empty.line) == (True, True)


def _failing(attempts: int) -> list[HistoryEntry]:
    """A workflow whose only node fails on purpose, so many times."""
    told = span(1.0, 1.1, "client", "accept", "w", nodes={"n": []}, most=3, ends=["completed"])
    for one in range(attempts):
        told += span(2.0 + one, 2.0 + one, "agent-1", "execute", "w:n", Type.FAIL, attempt=one + 1)
    return [
        *told,
        HistoryEntry(8.0, "dispatcher-1", Type.OK, "state", "w:n", {"state": "failed", "fence": 1, "version": 8}),
        HistoryEntry(9.0, "client", Type.OK, "end", "w", {"state": "failed"}),
    ]


@pytest.mark.parametrize(
    ("attempts", "victims", "excused"),
    [(3, [], True), (2, [], False), (2, ["agent-1"], True), (2, ["agent-2"], False), (2, ["broker"] * 3, False)],
)
def test_failure_is_excused_by_attempts_that_were_used_up(attempts: int, victims: list[str], excused: bool) -> None:
    killed = [HistoryEntry(2.5, "chaos", Type.OK, "kill", one, {"kind": "a kill"}) for one in victims]

    check = judged("ends as meant", *_failing(attempts), *killed)

    assert (check.checked, check.passed) == (1, excused)


def _granted(agents: list[str]) -> list[HistoryEntry]:
    """A durable task that was granted to one agent after the other, and ended dead without an execution."""
    states = [("working", agent, 2.0 + one) for one, agent in enumerate(agents)]
    states.append(("dead", "", 2.0 + len(agents)))
    facts = {"nodes": {"n": []}, "most": len(agents), "ends": ["completed"]}
    return [
        HistoryEntry(1.0, "client", Type.OK, "accept", "w", facts),
        *(
            HistoryEntry(at, "dispatcher-1", Type.OK, "state", "w:n", {"state": state, "agent": agent, "version": at})
            for state, agent, at in states
        ),
        HistoryEntry(9.0, "client", Type.OK, "end", "w", {"state": "dead"}),
    ]


@pytest.mark.parametrize(
    ("killed", "excused"),
    [
        (["agent-1", "agent-2", "agent-1"], True),
        (["agent-1", "agent-2"], False),
        (["agent-1", "agent-2", "agent-3"], False),
    ],
    ids=["each of them", "but one of them", "one who never had it"],
)
def test_agents_that_died_before_they_began_use_attempts_up(killed: list[str], excused: bool) -> None:
    granted = _granted(["agent-1-7b41b1bd", "agent-2-fb447e83", "agent-1-75c7165c"])
    kills = [
        HistoryEntry(2.5 + one, "chaos", Type.OK, "kill", post, {"kind": "agent.kill"})
        for one, post in enumerate(killed)
    ]

    check = judged("ends as meant", *granted, *kills)

    assert (check.checked, check.passed) == (1, excused)


def test_redrive_excuses_a_second_end_of_what_ended_because_of_the_node() -> None:
    ends = [
        HistoryEntry(
            at, "dispatcher-1", Type.OK, "state", "w:after", {"state": state, "fence": 1, "attempt": 1, "version": at}
        )
        for at, state in ((1.0, "failed"), (5.0, "completed"))
    ]
    asked = [("redrive", "w:broken"), ("resume", "w"), ("redrive", "other:broken")]

    passed = [judged("one end each", *ends, *span(3.0, 3.0, "client", *one)).passed for one in asked]

    assert passed == [True, True, False]
    assert not judged("one end each", *ends).passed


def test_what_had_begun_when_its_acceptance_was_noted_did_not_wait() -> None:
    facts: dict[str, Any] = {"most": 5, "ends": ["completed"], "priority": "p2"}
    entries = [
        *span(1.0, 1.0, "chaos", "wipe", "redis", kind="redis.wipe"),
        *look(2.0, ["agent-1", "agent-2"], running=["agent-1", "agent-2"], at_work=["agent-1", "agent-2"]),
        *span(3.0, 3.0, "client", "accept", "task", **facts),
        *span(3.0, 60.0, "agent-1", "execute", "task", agent="agent-1", attempt=1, fence=1),
        HistoryEntry(60.0, "client", Type.OK, "end", "task", {"state": "completed"}),
    ]

    assert judged("recovered in time", *entries).passed


@pytest.mark.parametrize(("f", "facts", "checked"), [("execute", {}, 1), ("call", {"calls": True}, 0), ("call", {}, 1)])
def test_only_a_task_that_waits_for_its_dependency_is_not_held_up_by_a_fault(
    f: str, facts: dict[str, bool], checked: int
) -> None:
    wiped = [HistoryEntry(1.0, "chaos", Type.OK, "wipe", "redis", {"kind": "redis.wipe"})]
    entries = [
        *look(2.0, ["agent-1", "agent-2"], running=["agent-1", "agent-2"], at_work=["agent-1", "agent-2"]),
        HistoryEntry(3.0, "client", Type.OK, "accept", "task", facts),
        HistoryEntry(60.0, "agent-1", Type.OK, f, "task", {"task": "task"}),
        HistoryEntry(60.0, "client", Type.OK, "end", "task", {"state": "completed"}),
    ]

    check = judged("recovered in time", *wiped, *entries)

    assert (check.checked, check.passed) == (checked, not checked)


def test_result_may_be_acknowledged_by_what_a_stopped_process_had_committed() -> None:
    completed: dict[str, Any] = {"state": "completed", "fence": 1, "attempt": 1, "version": 2}

    def passes(committer: str) -> bool:
        acked = HistoryEntry(2.0, "dispatcher-1", Type.OK, "ack", "w:n", {"fence": 1, "publication": 1})
        return judged("recorded, then acked", *span(1.0, 3.0, committer, "state", "w:n", **completed), acked).passed

    assert (passes("dispatcher-2"), passes("dispatcher-1")) == (True, False)


@pytest.mark.parametrize(("state", "passed"), [("ready", True), ("working", False)])
def test_node_that_is_given_back_is_ready_under_the_fence_of_the_report(state: str, passed: bool) -> None:
    facts: dict[str, Any] = {"state": state, "fence": 2, "attempt": 1, "version": 2}
    entries = [
        *span(1.0, 1.0, "dispatcher-1", "state", "w:n", **facts),
        HistoryEntry(2.0, "dispatcher-1", Type.OK, "ack", "w:n", {"fence": 2, "publication": 1}),
    ]

    assert judged("recorded, then acked", *entries).passed is passed
