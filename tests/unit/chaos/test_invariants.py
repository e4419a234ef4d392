"""Every checker finds the violation that it looks for, and no history of a fleet that kept its promises is flagged."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dispatcher.chaos.invariants import CHECKS, judge
from dispatcher.chaos.judgement import Judgement, lines
from dispatcher.witness.history import Entry, Type
from tests.unit.chaos.histories import DYING, STEADY, added, changed, clean_history, drop, moved

RANDOMS = st.integers(0, 2**32).map(Random)
Lie = Callable[[list[Entry], str, str], list[Entry]]
"""Makes a false history of a clean one, about a node and its workflow."""


def _completed(entries: list[Entry]) -> tuple[str, str]:
    """A node that completed, the last of its workflow if there is one."""
    keys = [one.key for one in entries if one.f == "result" and one.val["state"] == "completed"]
    return keys[-1], keys[-1].partition(":")[0]


def _first(entries: list[Entry], f: str, key: str) -> Entry:
    return next(one for one in entries if (one.f, one.key) == (f, key))


def _newest(entries: list[Entry], f: str, key: str) -> Entry:
    return [one for one in entries if (one.f, one.key) == (f, key) and one.val][-1]


def _successor_too_early(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    nodes = _first(entries, "accept", workflow).val["nodes"]
    name = node.partition(":")[2]
    later = changed(entries, f="accept", key=workflow, nodes={**nodes, "extra": [name]})
    early = Entry(
        _first(later, "execute", node).t - 0.00001, "agent-1", Type.INVOKE, "execute", f"{workflow}:extra", {}
    )
    return sorted([*later, early], key=lambda one: one.t)


def _again(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    newest = _newest(entries, "state", node).val
    return added(entries, proc="dispatcher-2", f="state", key=node, **{**newest, "state": "failed", "version": 10**12})


def _fallen_fence(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    newest = _newest(entries, "claim", node).val
    lower = {**newest, "fence": newest["fence"] - 1, "publication": 9_999, "version": 10**12}
    return added(entries, proc="dispatcher-2", f="claim", key=node, **lower)


def _reused_publication(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    newest = _newest(entries, "claim", node).val
    return added(entries, proc="dispatcher-2", f="claim", key=f"{workflow}:other", **newest)


def _unclaimed_publish(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    return added(entries, proc="dispatcher-1", f="publish", key=node, shard=0, fence=99, publication=77_777)


def _acked_too_early(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    return moved(entries, f="ack", type_=Type.OK, key=node, to=_first(entries, "accept", workflow).t)


def _ran_for_no_reason(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    many = entries
    for _ in range(40):  # more than there are faults
        many = added(many, proc="agent-1", f="execute", key="task0", agent="agent-1", attempt=1, fence=1)
    return many


def _failed_for_no_reason(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
    """One attempt at its only node, and nothing that was done to anybody."""
    facts = {"nodes": {"only": []}, "most": 3, "ends": ["completed"]}
    key, t = "workflow9:only", entries[-1].t + 100.0
    return [
        *entries,
        Entry(t, "client", Type.OK, "accept", "workflow9", facts),
        Entry(t + 1, "agent-1", Type.OK, "execute", key, {"agent": "agent-1", "attempt": 1, "fence": 1}),
        Entry(t + 2, "dispatcher-1", Type.OK, "state", key, {"state": "failed", "fence": 1, "version": 10**12}),
        Entry(t + 3, "client", Type.OK, "end", "workflow9", {"state": "failed"}),
    ]


def _starved(priority: str, other: str) -> Lie:
    """A task waits for all of the many that come after it."""

    def tell(entries: list[Entry], node: str, workflow: str) -> list[Entry]:
        t = entries[-1].t + 100.0
        told = [Entry(t, "client", Type.OK, "accept", "starved", {"priority": priority})]
        for number in range(200):
            key, at = f"other{number}", t + 0.01 * (number + 1)
            told.append(Entry(at, "client", Type.OK, "accept", key, {"priority": other}))
            told.append(Entry(at, "agent-1", Type.OK, "execute", key, {}))
        return [*entries, *told, Entry(t + 5.0, "agent-1", Type.OK, "execute", "starved", {})]

    return tell


LIES: dict[str, tuple[str, Lie]] = {
    "a workflow never ends": ("nothing lost", lambda all_, node, work: drop(all_, f="end", key=work)),
    "a direct task never ends": ("nothing lost", lambda all_, node, work: drop(all_, f="end", key="task0")),
    "a workflow failed for no reason": ("ends as meant", _failed_for_no_reason),
    "a direct task failed for no reason": (
        "ends as meant",
        lambda all_, node, work: changed(all_, f="end", key="task0", state="failed"),
    ),
    "a node ends twice": ("one end each", _again),
    "two attempts completed": (
        "one completion",
        lambda all_, node, work: changed(all_, f="result", key=node, completed=2),
    ),
    "an effect was made twice": (
        "effects exactly once",
        lambda all_, node, work: added(all_, proc="reader", f="effect", key=node, token="another"),
    ),
    "an effect is missing": ("effects exactly once", lambda all_, node, work: drop(all_, f="effect", key=node)),
    "a node ran before its predecessor": ("DAG order", _successor_too_early),
    "a fence fell": ("fences grow", _fallen_fence),
    "a late value was recorded": ("no stale write", lambda all_, node, work: changed(all_, f="result", key=node, by=0)),
    "a task ran for no reason": ("executions bounded", _ran_for_no_reason),
    "attempts exceed what is allowed": (
        "executions bounded",
        lambda all_, node, work: changed(all_, f="execute", key=node, attempt=6),
    ),
    "a P0 waits for a backlog": ("P0 soon", _starved("p0", "p2")),
    "a P2 is never its turn": ("P2 progress", _starved("p2", "p1")),
    "a dead agent stays listed": (
        "registry true",
        lambda all_, node, work: changed(all_, f="look", key="registry", listed=[STEADY, DYING]),
    ),
    "a living agent is not listed": (
        "registry true",
        lambda all_, node, work: changed(all_, f="look", key="registry", listed=[]),
    ),
    "somebody unknown is there": (
        "conservation",
        lambda all_, node, work: added(all_, proc="reader", f="census", key="nobody", state="completed"),
    ),
    "somebody is missing": ("conservation", lambda all_, node, work: changed(all_, f="census", key=work, state=None)),
    "an accepted workflow is unknown": (
        "acceptance durable",
        lambda all_, node, work: changed(all_, f="census", key=work, state=None),
    ),
    "a publication number was reused": ("publications unique", _reused_publication),
    "something unclaimed was published": ("publications unique", _unclaimed_publish),
    "a claim has no row": ("outbox kept", lambda all_, node, work: changed(all_, f="claim", key=node, row=False)),
    "a result was acknowledged too early": ("recorded, then acked", _acked_too_early),
}


@given(RANDOMS)
@settings(max_examples=60, deadline=None)
def test_clean_history_is_never_flagged(random: Random) -> None:
    judgements = judge(clean_history(random))

    assert [one.violations for one in judgements] == [()] * len(CHECKS)
    assert all(one.checked for one in judgements)


@pytest.mark.parametrize("lie", LIES)
@given(random=RANDOMS)
@settings(max_examples=8, deadline=None)
def test_planted_violation_is_found(lie: str, random: Random) -> None:
    invariant, tell = LIES[lie]
    entries = clean_history(random)
    assume(any(one.f == "result" and one.val["state"] == "completed" for one in entries))

    found = {one.invariant for one in judge(tell(entries, *_completed(entries))) if not one.passed}

    assert invariant in found


def test_every_checker_has_a_lie_that_it_finds() -> None:
    assert {invariant for invariant, _ in LIES.values()} == {one.invariant for one in judge([])}


def test_direct_task_may_be_lost_with_the_broker_s_only_disk() -> None:
    accepted = [
        Entry(1.0, "client", Type.INVOKE, "accept", "task", {}),
        Entry(1.1, "client", Type.OK, "accept", "task"),
    ]
    wiped = Entry(2.0, "chaos", Type.OK, "wipe", "broker", {"kind": "broker.wipe"})

    assert not judge(accepted)[0].passed
    assert judge([*accepted, wiped])[0].passed


def test_judgement_tells_how_sure_one_may_be() -> None:
    passed = Judgement("nothing lost", "accepted work ends", 1_000)
    failed = Judgement("nothing lost", "accepted work ends", 1_000, tuple("abcdefg"))
    empty = Judgement("nothing lost", "accepted work ends", 0)

    assert (passed.bound, failed.bound, empty.bound) == (0.003, None, None)
    assert "pass" in passed.line and "< 0.003 at 95 %" in passed.line
    assert lines([failed])[1:] == [*(f"        {one}" for one in "abcde"), "        and 2 more"]
    assert (empty.passed, "nothing to check" in empty.line) == (True, True)


def _failing(attempts: int) -> list[Entry]:
    """A workflow whose only node fails on purpose, so many times."""
    tries = [
        Entry(2.0 + one, "agent-1", type_, "execute", "w:n", {"attempt": one + 1})
        for one in range(attempts)
        for type_ in (Type.INVOKE, Type.FAIL)
    ]
    facts = {"nodes": {"n": []}, "most": 3, "ends": ["completed"]}
    return [
        Entry(1.0, "client", Type.INVOKE, "accept", "w", facts),
        Entry(1.1, "client", Type.OK, "accept", "w"),
        *tries,
        Entry(8.0, "dispatcher-1", Type.OK, "state", "w:n", {"state": "failed", "fence": 1, "version": 8}),
        Entry(9.0, "client", Type.OK, "end", "w", {"state": "failed"}),
    ]


@pytest.mark.parametrize(("attempts", "faults", "excused"), [(3, 0, True), (2, 0, False), (2, 1, True)])
def test_failure_is_excused_by_attempts_that_were_used_up(attempts: int, faults: int, excused: bool) -> None:
    killed = [Entry(2.5, "chaos", Type.OK, "kill", "broker", {"kind": "broker.kill"})] * faults
    entries = sorted([*_failing(attempts), *killed], key=lambda one: one.t)

    (judgement,) = (one for one in judge(entries) if one.invariant == "ends as meant")

    assert (judgement.checked, judgement.passed) == (1, excused)


def _granted(agents: list[str]) -> list[Entry]:
    """A durable task that was granted to one agent after the other, and ended dead without an execution."""
    states = [("working", agent, 2.0 + one) for one, agent in enumerate(agents)]
    states.append(("dead", "", 2.0 + len(agents)))
    facts = {"nodes": {"n": []}, "most": len(agents), "ends": ["completed"]}
    return [
        Entry(1.0, "client", Type.OK, "accept", "w", facts),
        *(
            Entry(at, "dispatcher-1", Type.OK, "state", "w:n", {"state": state, "agent": agent, "version": at})
            for state, agent, at in states
        ),
        Entry(9.0, "client", Type.OK, "end", "w", {"state": "dead"}),
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
        Entry(2.5 + one, "chaos", Type.OK, "kill", post, {"kind": "agent.kill"}) for one, post in enumerate(killed)
    ]

    (judgement,) = (
        one for one in judge(sorted([*granted, *kills], key=lambda one: one.t)) if one.invariant == "ends as meant"
    )

    assert (judgement.checked, judgement.passed) == (1, excused)


def test_redrive_excuses_a_second_end_of_what_ended_because_of_the_node() -> None:
    ends = [
        Entry(
            at, "dispatcher-1", Type.OK, "state", "w:after", {"state": state, "fence": 1, "attempt": 1, "version": at}
        )
        for at, state in ((1.0, "failed"), (5.0, "completed"))
    ]
    asked = [Entry(3.0, "client", type_, "redrive", "w:broken", {}) for type_ in (Type.INVOKE, Type.OK)]
    elsewhere = [Entry(3.0, "client", Type.OK, "redrive", "other:broken", {})]

    def passes(more: list[Entry]) -> bool:
        judgements = judge(sorted([*ends, *more], key=lambda one: one.t))
        return next(one for one in judgements if one.invariant == "one end each").passed

    assert (passes(asked), passes(elsewhere), passes([])) == (True, False, False)
