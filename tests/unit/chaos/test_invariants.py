"""Every checker finds the lies that it looks for, and no history of a fleet that kept its promises is flagged."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from chaos.checks.check import CheckResult, lines
from chaos.checks.history_index import HistoryIndex
from chaos.checks.invariants import CHECKS, judge
from chaos.history import HistoryEntry, Type, merged
from tests.unit.chaos.histories import (
    ASKED,
    ASKED_BY,
    CALM_AT,
    CANCELED,
    CHILD,
    CONTESTED,
    DIED,
    DYING,
    GATE,
    LOCK,
    MOST_ATTEMPTS,
    NODE,
    PARENT,
    POISON,
    POLICED,
    PROBED,
    QUEUE,
    QUORUM,
    RATED,
    RESTORED,
    RUNS,
    SAGA,
    STEADY,
    STRANGER,
    STREAM,
    STRUCK,
    THREAD,
    TICKS,
    VOTE,
    WAITED,
    WORK,
    Lie,
    added,
    altered,
    appended,
    changed,
    clean_history,
    dropped,
    idle,
    judged,
    keyed_beside,
    look,
    made,
    moved,
    span,
    struck,
    unended,
)


def a_completed_node(entries: list[HistoryEntry]) -> tuple[str, ...]:
    """A node that completed, and its workflow: the last of them; empty when none did."""
    keys = [
        one.key
        for one in entries
        if one.f == "result" and one.val["state"] == "completed" and one.key.startswith("workflow")
    ]
    return (keys[-1], keys[-1].partition(":")[0]) if keys else ()


def _first(entries: list[HistoryEntry], f: str, key: str) -> HistoryEntry:
    return next(one for one in entries if (one.f, one.key) == (f, key))


def _newest(entries: list[HistoryEntry], f: str, key: str) -> HistoryEntry:
    return [one for one in entries if (one.f, one.key) == (f, key) and one.val][-1]


def _successor_too_early(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    nodes = _first(entries, "accept", workflow).val["nodes"]
    name = node.partition(":")[2]
    later = changed(entries, f="accept", key=workflow, nodes={**nodes, "extra": [name]})
    early = HistoryEntry(
        _first(later, "execute", node).t - 0.00001, "agent-1", Type.INVOKE, "execute", f"{workflow}:extra", {}
    )
    return sorted([*later, early], key=lambda one: one.t)


def _held_beside(entries: list[HistoryEntry]) -> list[HistoryEntry]:
    facts = {"task": "task-4", "fence": 4}
    beside = HistoryEntry(CALM_AT + 300.5, "agent-4", Type.INVOKE, "hold", LOCK, facts)
    return sorted([*entries, beside], key=lambda one: one.t)


def _again(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    newest = _newest(entries, "state", node).val
    return added(entries, proc="dispatcher-2", f="state", key=node, **{**newest, "state": "failed", "version": 10**12})


def _fallen_fence(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    newest = _newest(entries, "claim", node).val
    lower = {**newest, "fence": newest["fence"] - 1, "publication": 9_999, "version": 10**12}
    return added(entries, proc="dispatcher-2", f="claim", key=node, **lower)


def _same_fence(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    newest = _newest(entries, "claim", node).val
    again = {**newest, "publication": 9_999, "version": 10**12}
    return added(entries, proc="dispatcher-2", f="claim", key=node, **again)


def _claimed_while_paused(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    paused = next(one.t for one in entries if one.f == "pause" and one.type is Type.OK)
    key, facts = f"{ASKED}:early", {"shard": 7, "fence": 1, "publication": 99, "version": 10**12}
    claim = [
        HistoryEntry(paused + 0.00001, "dispatcher-1", type_, "claim", key, facts) for type_ in (Type.INVOKE, Type.OK)
    ]
    return merged([*entries, *claim])


def _looping(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    for _ in range(10):
        entries = added(entries, proc="agent-1", f="execute", key=STRANGER, attempt=1, fence=1)
    return entries


def _reused_publication(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    newest = _newest(entries, "claim", node).val
    return added(entries, proc="dispatcher-2", f="claim", key=f"{workflow}:other", **newest)


def _unclaimed_publish(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    return added(entries, proc="dispatcher-1", f="publish", key=node, shard=0, fence=99, publication=77_777)


def _acked_too_early(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    return moved(entries, f="ack", type_=Type.OK, key=node, to=_first(entries, "accept", workflow).t)


def _confirmed_early(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    """Its claim counts as confirmed before its publish has begun."""
    claim = _newest(entries, "claim", node)
    facts = {"number": claim.val["publication"], "version": claim.val["version"] + 1}
    at = entries.index(claim) + 1
    confirm = HistoryEntry(claim.t, claim.proc, Type.OK, "confirmed", f"shard-{claim.val['shard']}", facts)
    return [*entries[:at], confirm, *entries[at:]]


def _ran_for_no_reason(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    many = entries
    for _ in range(40):  # more than there are faults
        many = added(many, proc="agent-1", f="execute", key="task0", agent="agent-1", attempt=1, fence=1)
    return many


def _failed_for_no_reason(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    """One attempt at its only node, and nothing that was done to anybody."""
    facts = {"nodes": {"only": []}, "most": 3, "ends": ["completed"]}
    key, t = "workflow9:only", entries[-1].t + 100.0
    return [
        *entries,
        HistoryEntry(t, "client", Type.OK, "accept", "workflow9", facts),
        HistoryEntry(t + 1, "agent-1", Type.OK, "execute", key, {"agent": "agent-1", "attempt": 1, "fence": 1}),
        HistoryEntry(t + 2, "dispatcher-1", Type.OK, "state", key, {"state": "failed", "fence": 1, "version": 10**12}),
        HistoryEntry(t + 3, "client", Type.OK, "end", "workflow9", {"state": "failed"}),
    ]


def _direct_task_failed_for_no_reason(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    """One attempt at a task, long after the last fault."""
    t = entries[-1].t + 100.0
    return [
        *entries,
        HistoryEntry(t, "client", Type.OK, "accept", "task9", {"most": 3, "ends": ["completed"], "priority": "p1"}),
        HistoryEntry(t + 1, "agent-1", Type.OK, "execute", "task9", {"agent": "agent-1", "attempt": 1, "fence": 1}),
        HistoryEntry(t + 2, "client", Type.OK, "end", "task9", {"state": "failed"}),
    ]


def _waited_twice(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    first = added(entries, proc="one", f="ticket", key="a", ticket="t", place=1)
    return added(first, proc="two", f="ticket", key="a", ticket="t", place=9)


def _starved(priority: str, other: str) -> Lie:
    """A task waits for all of the many that come after it."""

    def tell(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
        t = entries[-1].t + 100.0
        told = [HistoryEntry(t, "client", Type.OK, "accept", "starved", {"priority": priority})]
        for number in range(200):
            key, at = f"other{number}", t + 0.01 * (number + 1)
            told.append(HistoryEntry(at, "client", Type.OK, "accept", key, {"priority": other}))
            told.append(HistoryEntry(at, "agent-1", Type.OK, "execute", key, {}))
        return [*entries, *told, HistoryEntry(t + 5.0, "agent-1", Type.OK, "execute", "starved", {})]

    return tell


def _late_after(kind: str, *, published: float) -> Lie:
    """A node is executed long after the one fault that met it, and was published so long after the fault."""
    return lambda entries, node, workflow: merged(
        [*(one for one in entries if not one.key.startswith(STRUCK)), *struck(kind, published=published, executed=13.0)]
    )


def _fired_twice(entries: list[HistoryEntry], node: str, workflow: str) -> list[HistoryEntry]:
    for version, state in enumerate(("waiting", "completed"), 10**12):
        facts = {"state": state, "fence": 0, "attempt": 1, "version": version}
        entries = added(entries, proc="dispatcher-1", f="state", key=f"{WAITED}:pause", **facts)
    return entries


def _without(f: str, **val: Any) -> Lie:
    """Leave out the entries with these facts."""
    return lambda entries, node, work: [one for one in entries if one.f != f or {**one.val, **val} != dict(one.val)]


def _both_counted(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    return [replace(one, type=Type.OK) if (one.f, one.type) == ("answer", Type.FAIL) else one for one in entries]


def _exchanged(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    """The first two messages in the other order, in all that is known but when they were said."""
    other = {1: 2, 2: 1}

    def exchange(one: HistoryEntry) -> HistoryEntry:
        if one.f not in ("say", "message") or one.val.get("number") not in other:
            return one
        return replace(one, val={**one.val, "number": other[one.val["number"]]})

    return [exchange(one) for one in entries]


def _read_unheard(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    """A thread that stays open, and whose last message is noted as read by one who was not told."""
    return [one for one in entries if (one.f, one.val.get("text")) != ("hear", "three")]


def _told(*nodes: str) -> Lie:
    return altered("joined", QUORUM, values=[f"{QUORUM}:{node}@1" for node in nodes])


def _refused(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    return [replace(one, type=Type.FAIL) if (one.f, one.type) == ("restore", Type.OK) else one for one in entries]


LIES: dict[str, tuple[str, Lie]] = {
    "a dead agent's task begins late": ("recovered in time", _late_after("agent.kill", published=-0.1)),
    "a stopped agent's task begins late": ("recovered in time", _late_after("agent.stop", published=-0.1)),
    "a cut-off agent's task begins late": ("recovered in time", _late_after("broker.part", published=-0.1)),
    "a task begins late after the broker is back": ("recovered in time", _late_after("broker.kill", published=0.2)),
    "a dispatcher died, and a task begins late": ("recovered in time", _late_after("dispatcher.kill", published=2.0)),
    "a workflow never ends": ("nothing lost", dropped("end", WORK)),
    "a direct task never ends": ("nothing lost", dropped("end", "task0")),
    "what completed is not undone": ("undone in reverse", dropped("execute", f"{SAGA}:one.compensate")),
    "what completed first is undone first": (
        "undone in reverse",
        lambda all_, node, work: moved(
            all_, f="execute", type_=Type.INVOKE, key=f"{SAGA}:one.compensate", to=CALM_AT + 250.0
        ),
    ),
    "what failed is undone": ("undone in reverse", altered("result", f"{SAGA}:two", state="failed")),
    "a workflow failed for no reason": ("ends as meant", _failed_for_no_reason),
    "a direct task failed for no reason": ("ends as meant", _direct_task_failed_for_no_reason),
    "a node ends twice": ("one end each", _again),
    "two attempts completed": ("one completion", altered("result", NODE, completed=2)),
    "an effect was made twice": ("effects exactly once", appended("effect", NODE, token="another")),
    "an effect is missing": ("effects exactly once", dropped("effect", NODE)),
    "a node ran before its predecessor": ("DAG order", _successor_too_early),
    "a fence fell": ("fences grow", _fallen_fence),
    "a fence was given twice": ("fences grow", _same_fence),
    "two executions had one fence": ("fences grow", appended("execute", f"{ASKED}:first", attempt=1, fence=1)),
    "a shard changed hands under one epoch": (
        "fences grow",
        appended("lease", "shard-9", owner="three", epoch=2, version=10**12),
    ),
    "a late value was recorded": ("no stale write", altered("result", NODE, by=0)),
    "a lock had two holders": ("locks exclude", lambda all_, node, work: _held_beside(all_)),
    "two holders of a lock had one fence": ("locks exclude", altered("hold", LOCK, fence=5)),
    "a lock request waited in line twice": ("tickets live once", _waited_twice),
    "a task went on to end agents": (
        "poison contained",
        lambda all_, node, work: [*all_, *(replace(_first(all_, "terminate", POISON), t=9e9 + n) for n in range(9))],
    ),
    "a task that ended its agents ran again and again": (
        "poison contained",
        lambda all_, node, work: [
            *all_,
            *(replace(_first(all_, "execute", POISON), t=9e9 + n, type=Type.FAIL) for n in range(9)),
        ],
    ),
    "poison failed for another reason": ("poison contained", altered("failed", POISON, reason="timeout")),
    "a permit had two probes": ("one probe an interval", altered("call", PROBED, permit=10_000)),
    "an interval had two permits": ("one probe an interval", appended("call", PROBED, proc="agent-9", permit=10_700)),
    "a tick started two workflows": (
        "one run a tick",
        altered("execute", f"{TICKS[1]}:ticked", after=["2026-01-01T00:00:00+00:00"]),
    ),
    "a tick was lost": ("one run a tick", dropped("accept", TICKS[1])),
    "a schedule ticked no more": ("one run a tick", unended("schedule")),
    "a timer fired too early": ("timers fire", altered("accept", WAITED, timers={"pause": [60_000, "first", "later"]})),
    "a timer never fired": ("timers fire", dropped("execute", f"{WAITED}:later")),
    "a timer fired twice": ("timers fire", _fired_twice),
    "a signal counted twice": ("signals once", altered("execute", f"{WAITED}:heard", after=["one", "one"])),
    "a node was given a signal of nobody": (
        "signals once",
        altered("execute", f"{WAITED}:heard", after=["one", "three"]),
    ),
    "a signal was lost": ("signals once", altered("census", WAITED, state="running")),
    "a dispatcher that lives was evicted": ("executions bounded", appended("evict", "dispatcher-9-1")),
    "an agent that lives is recorded as dead": ("deaths proven", altered("died", DIED, agent="agent-9-0a1b2c3d")),
    "a task ran for no reason": ("executions bounded", _ran_for_no_reason),
    "attempts exceed what is allowed": ("executions bounded", altered("execute", NODE, attempt=6)),
    "a P0 waits for a backlog": ("P0 soon", _starved("p0", "p2")),
    "a P2 is never its turn": ("P2 progress", _starved("p2", "p1")),
    "a slot stays free": ("no idle slot", lambda all_, node, work: [*all_, *idle(all_[-1].t + 100.0, 0.2)]),
    "a process met the unexpected": (
        "no crash",
        appended("crash", "agent-1", proc="nemesis", reason="  | KeyError: 'lost'"),
    ),
    "a process ended unasked without an error": (
        "no crash",
        appended("restart", "dispatcher-1", proc="nemesis", life="dispatcher-1#7"),
    ),
    "a dead agent stays listed": ("registry true", altered("look", "registry", listed=[STEADY, DYING])),
    "a living agent is not listed": ("registry true", altered("look", "registry", listed=[])),
    "somebody unknown is there": ("conservation", appended("census", "nobody", state="completed")),
    "somebody is missing": ("conservation", altered("census", WORK, state=None)),
    "an accepted workflow is unknown": ("acceptance durable", altered("census", WORK, state=None)),
    "the ledger knows one of nobody": (
        "conservation",
        appended("census", "nobody", state="completed", submitted="a key of nobody"),
    ),
    "the ledger disagrees with itself": (
        "ledger balances",
        altered("audit", "ledger", wrong=["w:n: it is ready and not listed"]),
    ),
    "a message is left in a queue": ("nothing left over", altered("left", QUEUE, messages=1)),
    "a stranger's message is executed again and again": ("executions bounded", _looping),
    "a key means two workflows to clients": (
        "one key, one workflow",
        appended("submit", "key", proc="client", run="another"),
    ),
    "a key means two workflows in the ledger": (
        "one key, one workflow",
        appended("census", "another", state="completed", submitted="key"),
    ),
    "a paused workflow goes on": ("held when asked", _claimed_while_paused),
    "a canceled workflow goes on": (
        "held when asked",
        appended("claim", f"{CANCELED}:second", shard=8, fence=1, publication=5, version=10**12),
    ),
    "a node ended without its condition": ("nodes as meant", altered("result", f"{ASKED}:skipped", state="completed")),
    "a node that was to be skipped ran": (
        "nodes as meant",
        appended("execute", f"{ASKED}:skipped", attempt=1, fence=1),
    ),
    "a node was skipped against its condition": (
        "nodes as meant",
        altered("result", f"{ASKED}:after", state="skipped"),
    ),
    "a task ran with another priority": ("given as asked", altered("execute", f"{ASKED}:after", priority="p1")),
    "a task was given another input": (
        "given as asked",
        altered("execute", f"{ASKED}:after", after=["token of another"]),
    ),
    "a direct task had too many attempts": (
        "executions bounded",
        altered("execute", "calm0", attempt=MOST_ATTEMPTS + 3),
    ),
    "a publication number was reused": ("publications unique", _reused_publication),
    "a node ran before its grant": ("approved first", dropped("grant", f"{POLICED}:asked")),
    "a node ran that the policy refuses": ("approved first", appended("execute", f"{POLICED}:forbidden", attempt=1)),
    "a decision is not in the trail": ("approved first", dropped("decision", f"{POLICED}:allowed")),
    "a decision is in the trail twice": (
        "approved first",
        appended("decision", f"{POLICED}:allowed", decision="granted", by="policy"),
    ),
    "something unclaimed was published": ("publications unique", _unclaimed_publish),
    "a publication counts as confirmed before it is": ("outbox kept", _confirmed_early),
    "a result was acknowledged too early": ("recorded, then acked", _acked_too_early),
    "two tasks of a key ran at once": ("keys exclude", lambda entries, node, work: keyed_beside(entries)),
    "an approval was decided twice": ("decided once", appended("decision", GATE, decision="denied", by="bob")),
    "an approval was never decided": ("decided once", _without("decision", decision="granted")),
    "two people were told that their answer counts": ("decided once", _both_counted),
    "an approval did not end as it was decided": ("decided once", altered("result", GATE, state="rejected")),
    "a node ran before its approval ended": ("decided once", dropped("result", f"{CONTESTED}:gate")),
    "a message is in its thread twice": ("threads kept", appended("message", THREAD, number=4, text="two")),
    "a message is lost": ("threads kept", _without("message", text="two")),
    "a message is not what was said": ("threads kept", altered("say", f"{THREAD}/two", text="another")),
    "a thread has a message that nobody said": ("threads kept", dropped("say", f"{THREAD}/one")),
    "messages are not in their order": ("threads kept", _exchanged),
    "a listener was not told of a message": ("threads kept", _without("hear", text="two")),
    "a listener that came back was not told what it had missed": ("threads kept", dropped("hear", f"{THREAD}/2")),
    "a message is noted as read, and was not told": ("threads kept", _read_unheard),
    "a thread was never closed": ("threads kept", unended("talk")),
    "a vote is what fewer said": ("majority counts", altered("verdict", VOTE, value="no")),
    "a vote has no majority": (
        "majority counts",
        altered("accept", VOTE, ballots={"vote_1": "yes", "vote_2": "yes", "vote_3": "no"}),
    ),
    "a vote failed although most were of one mind": ("majority counts", altered("census", VOTE, state="failed")),
    "an event started two runs": (
        "one run an event",
        altered("execute", f"{RUNS[1]}:triggered", after=["event-0"]),
    ),
    "an event started nothing": ("one run an event", dropped("execute", f"{RUNS[1]}:triggered")),
    "an event that nobody published started a workflow": ("one run an event", dropped("event", "event-1")),
    "a trigger was never removed": ("one run an event", unended("trigger")),
    "a node ran two children": ("child ends first", appended("accept", "other", parent=f"{PARENT}:sub", nodes={})),
    "a child outlives its node": (
        "child ends first",
        appended("state", f"{CHILD}:made", state="completed", fence=1, attempt=1, version=10**12),
    ),
    "a node got another result than its child's": (
        "child ends first",
        altered("execute", f"{PARENT}:last", after=["another token"]),
    ),
    "more executions began than their rate allows": ("rate kept", altered("begin", RATED, per_second=0, burst=0)),
    "a reader was not told that the parts began again": ("parts in order", dropped("restarted", STREAM)),
    "a part was left out": ("parts in order", _without("given", part="second/0")),
    "a part came twice": ("parts in order", appended("given", STREAM, part="second/1")),
    "a pattern counts a result twice": ("patterns join", _told("member_1", "member_1")),
    "a pattern counts one that was canceled": ("patterns join", _told("member_1", "member_2")),
    "a pattern counts fewer than are enough": ("patterns join", _told("member_3")),
    "a pattern counts what no execution made": ("patterns join", dropped("execute", f"{QUORUM}:member_3")),
    "a member began after enough others": ("patterns join", altered("claim", f"{QUORUM}:member_2", version=10**6)),
    "a restore was not carried out": ("restored whole", dropped("restores", RESTORED)),
    "a restore was carried out twice": ("restored whole", altered("restores", RESTORED, by=[ASKED_BY, ASKED_BY])),
    "a restore that was refused was carried out": ("restored whole", _refused),
    "a restore that nobody asked for was carried out": ("restored whole", dropped("restore", RESTORED)),
    "a restore did not undo what it said": ("restored whole", dropped("claim", f"{RESTORED}:left.compensate")),
    "a restore undid more than it said": (
        "restored whole",
        altered("restore", RESTORED, by=ASKED_BY, checkpoint="mark", undone=["left"]),
    ),
    "a restore discarded the unnamed": (
        "restored whole",
        altered("restore", RESTORED, by=ASKED_BY, checkpoint="mark", named=["left", "last"]),
    ),
    "a restore undid first things first": (
        "restored whole",
        altered("claim", f"{RESTORED}:last.compensate", version=13),
    ),
    "a discarded node ran too early": (
        "restored whole",
        altered("claim", f"{RESTORED}:left.compensate", version=10**6),
    ),
    "a result of a discarded run counts": ("restored whole", altered("result", f"{RESTORED}:left", by=1)),
    "a node got what a discarded run made": (
        "restored whole",
        altered("execute", f"{RESTORED}:join", after=[made("left", 1)]),
    ),
    "state has what a discarded run wrote": (
        "restored whole",
        altered("saw", f"{RESTORED}:left", trail={"mark": made("mark", 1), "left": made("left", 1)}),
    ),
    "state lacks what a checkpoint had": ("restored whole", altered("saw", f"{RESTORED}:left", trail={})),
    "a removed key was not brought back": ("restored whole", altered("saw", f"{RESTORED}:left", there=None)),
    "a node before the checkpoint ran again": (
        "restored whole",
        appended("claim", f"{RESTORED}:mark", fence=5, shard=30, publication=10**6, version=10**6),
    ),
    "a stream ended early": ("parts in order", _without("given", part="second/1")),
}


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
