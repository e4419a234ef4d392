"""Lies that can be told in a history, each with the invariant that finds it."""

from __future__ import annotations

from dataclasses import replace

from chaos.history import HistoryEntry, Type, merged
from tests.unit.chaos.histories import (
    ASKED,
    CALM_AT,
    CANCELED,
    DIED,
    DYING,
    LOCK,
    MOST_ATTEMPTS,
    NODE,
    POISON,
    POLICED,
    PROBED,
    QUEUE,
    SAGA,
    STEADY,
    STRANGER,
    STRUCK,
    TICKS,
    WAITED,
    WORK,
    Lie,
    added,
    altered,
    appended,
    changed,
    dropped,
    idle,
    moved,
    struck,
    unended,
)
from tests.unit.chaos.lies_of_parts import LIES_OF_PARTS


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
    "a claim has no row": ("outbox kept", altered("claim", NODE, row=False)),
    "a result was acknowledged too early": ("recorded, then acked", _acked_too_early),
    **LIES_OF_PARTS,
}
