"""The promises about executions: tasks run after their predecessors, and again only if a fault may have hit them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation
from chaos.faults.strangers import PREFIX
from chaos.history import UNENDED, post_of
from chaos.load.work import MOST_ATTEMPTS as TASK_ATTEMPTS

SUSPECT_ATTEMPTS = 2
"""The extra attempts of a direct task whose agent was killed."""
MOMENT_SECONDS = 1.0
"""The time after a fault's end in which the victim may still not know of it, and the fault counts."""
EVICTED_SECONDS = 10.0
"""The time after a fault of a server in which a dispatcher may evict a living process."""
LEFT_SECONDS = 90.0
"""The time after a fault in which its victim may still end by itself, be evicted, or be recorded as dead.

A process tries for a minute to reach a server, and a dispatcher looks once a minute for agents that are gone.
"""
ENDED = frozenset({"ok", "fail"})
GIVEN_UP = frozenset({"failed", "dead"})
WITHOUT_A_VALUE = TERMINAL - {"completed"}


def dag_order(index: HistoryIndex) -> CheckResult:
    """Invariant I3: check that a node runs only after as many predecessors as it needs have ended or been approved.

    The existence of a value is read from the agents' records, not from the dispatcher's.
    """
    checked, violations, needed, waiting = 0, [], index.needed, index.waiting
    for key, after in index.nodes.items():
        runs = index.about("execute", key)
        if not runs or not after:
            continue
        checked += len(after)
        early = [before for before in after if not _over(index, before, runs[0].first, waits=before in waiting)]
        if len(after) - len(early) < needed.get(key, len(after)):
            violations.append(f"{key} ran at {runs[0].begun:.3f}, before {', '.join(early)} was over")
    return CheckResult("DAG order", "a node runs after its predecessors", checked, tuple(violations))


def _over(index: HistoryIndex, node: str, place: int, *, waits: bool) -> bool:
    executed = (one for one in index.about("execute", node) if one.outcome in ENDED)
    granted = (one for one in index.about("grant", node) if one.possible)
    ends = TERMINAL if waits else WITHOUT_A_VALUE
    given_up = (one for one in index.about("state", node) if one.possible and one.val["state"] in ends)
    began = (*granted, *given_up)
    return any(one.last < place for one in executed) or any(one.first < place for one in began)


def executions(index: HistoryIndex) -> CheckResult:
    """Invariant I6: check that a task runs once, plus at most once per failed execution, fault, handoff, and restore.

    A fault touches a task when it lasted, or ended a moment before, at some time between the grant of the first and the
    beginning of the last execution; the fault of an agent only if the task ever ran there. A take-over of its shard
    counts as a fault, a hand-over in order does not. An agent that executed the task and ended by itself, because it
    did not reach a server, counts beside the fault of that server, which may have cost an execution elsewhere before.
    One that another task asked to end counts if it gave the task back. A restore counts between the first and the last
    execution. Attempts never exceed those that the work permits. A foreign message is executed a few times at most. A
    living process is not evicted: its work would run again.
    """
    most, nodes = _most_attempts(index), index.nodes
    checked, violations = 0, []
    for key, runs in index.by_key("execute"):
        checked += 1
        failed = sum(one.outcome == "fail" for one in runs)
        since, until = in_hand(index, key, runs[0]), runs[-1].begun
        foreign = key.startswith(PREFIX)
        touched = repeats(index, key, runs) if foreign or len(runs) > 1 + failed else 0
        if foreign:  # it may run more often than a task of ours, but not without bound
            if len(runs) > TASK_ATTEMPTS * (1 + touched):
                violations.append(f"a stranger's {key} ran {len(runs)} times, {touched} faults touched it")
            continue
        hops = sum(one.outcome != "ok" for one in index.about("hand off", key))
        restored = sum(_met(one, runs[0].begun, until) for one in index.restores(key))
        if len(runs) > 1 + failed + touched + hops + restored:
            told = f"{key} ran {len(runs)} times, {failed} of them failed, {touched} faults touched it"
            when = (f"by {one.proc} from {one.begun:.3f} to {one.ended:.3f}" for one in runs)
            violations.append(f"{told}: {'; '.join(when)}")
        attempts = max(int(one.val.get("attempt", 1)) for one in runs)
        killed = key not in nodes and any(_met(one, since, until) for one in _kills(index, runs))
        spared = SUSPECT_ATTEMPTS if killed else 0
        if attempts > most.get(key, attempts) + spared:
            violations.append(f"{key} had {attempts} attempts, {most[key]} were allowed")
    violations += _evicted_alive(index)
    return CheckResult("executions bounded", "repeated only where a fault was", checked, tuple(violations))


def in_hand(index: HistoryIndex, key: str, first: Operation) -> float:
    """Return when a fault may first have doubled a task: at its start or grant, or a direct one's acceptance.

    A task waits for a key, and its start is granted, before its execution begins: a process may have to start for it.
    A direct task that the broker did not confirm in time is published again, so that the broker may have it twice.
    """
    direct = ":" not in key  # a node's key has its workflow's
    sent = "stranger" if key.startswith(PREFIX) else "accept"
    accepted = index.about(sent, key)[:1] if direct or first.val.get("alone") else ()
    states = (one for one in index.about("state", key) if one.possible and one.val["state"] == "working")
    granted = (one for one in states if one.val["fence"] == first.val.get("fence"))
    return min(one.begun for one in (first, *accepted, *granted))


def _evicted_alive(index: HistoryIndex) -> Iterator[str]:
    """Yield an error for each eviction without a fault of the process in the 90 s, or a server in the 10 s before."""
    gone = _by_agent(index, _ended_alone(index) | _drained(index))
    for one in index.of("evict"):
        hits = [fault for fault in index.faults if _holds((one.key,), fault.key)]
        ends = [*hits, gone[one.key]] if one.key in gone else hits
        own = any(_met(end, one.begun - LEFT_SECONDS, one.begun) for end in ends)
        servers = (fault for fault in index.faults if not fault.key.startswith(("agent", "dispatcher")))
        if not own and not any(_met(fault, one.begun - EVICTED_SECONDS, one.begun) for fault in servers):
            yield f"{one.key} was evicted by {one.proc} at {one.begun:.3f}, and it lived"


def _kills(index: HistoryIndex, runs: Sequence[Operation]) -> Iterator[Operation]:
    """Yield the kills of agents that ran a task; one amid its executions permits a direct task more attempts."""
    posts = {post_of(one.proc) for one in runs}
    return (one for one in index.of("kill") if one.key.startswith("agent") and _holds(posts, one.key))


def _most_attempts(index: HistoryIndex) -> dict[str, int]:
    """Return the number of permitted attempts of each direct task and each node, by task id."""
    most: dict[str, int] = {}
    for work in index.of("accept"):
        allowed, few = work.val.get("most"), work.val.get("few") or {}
        if allowed is not None:
            most[work.key] = int(allowed)
            most |= {f"{work.key}:{name}": int(few.get(name, allowed)) for name in work.val.get("nodes") or ()}
    return most


def as_meant(index: HistoryIndex) -> CheckResult:
    """Invariant I1: check that work ends in an intended state, unless faults used up the attempts of a task."""
    checked, violations = 0, []
    for work in index.accepted:
        end = next((one for one in index.about("end", work.key) if one.happened), None)
        if end is None or "ends" not in work.val:
            continue
        checked += 1
        excused = any(used_up(index, work, key, until=end.ended) for key in _given_up(index, work))
        if end.val["state"] not in work.val["ends"] and not excused:
            violations.append(f"{work.key} ended {end.val['state']}, and no faults explain that")
    return CheckResult("ends as meant", "what is not meant to fail completes", checked, tuple(violations))


def deaths_proven(index: HistoryIndex) -> CheckResult:
    """Check that no attempt is recorded as died whose agent no fault had just hit: faults of servers kill no agent."""
    hit = [one for one in index.faults if one.key.startswith("agent")]
    alone, drained = (_by_agent(index, ends) for ends in (_ended_alone(index), _drained(index)))
    checked, violations = 0, []
    for key, deaths in index.by_key("died"):
        for one in filter(lambda one: one.possible, deaths):
            checked += 1
            agent, since = one.val["agent"], one.begun - LEFT_SECONDS
            killed = any(_met(fault, since, one.begun) and _holds((agent,), fault.key) for fault in hit)
            left = agent in alone and _met(alone[agent], since, one.begun + LEFT_SECONDS)
            if not (killed or left or (agent in drained and _met(drained[agent], since, one.begun))):
                violations.append(f"{key} was recorded as died with {agent} at {one.begun:.3f}, and nothing killed it")
    return CheckResult("deaths proven", "an attempt died only with its agent", checked, tuple(violations))


def _given_up(index: HistoryIndex, work: Operation) -> Iterator[str]:
    """Yield the tasks that made the work fail: its failed or dead nodes, or the direct task itself."""
    nodes = work.val.get("nodes")
    if not nodes:
        yield work.key
    for key in (f"{work.key}:{name}" for name in nodes or {}):
        states = index.versioned("state", key)
        if states and states[-1].val["state"] in GIVEN_UP:
            yield key


def used_up(index: HistoryIndex, work: Operation, key: str, *, until: float = UNENDED) -> bool:
    """Tell whether a task's failed executions and the faults that hit it reach its number of permitted attempts.

    A node loses an attempt only with its agent, whatever happens to servers and dispatchers. An attempt begins with the
    grant of its start: the agent that got the grant may die before it executes anything. An agent that another task
    asked to end gives back what it has, and uses up no attempt.
    """
    states = index.versioned("state", key)
    until = states[-1].begun if states else until
    tries = _tries(index, key)
    failed = sum(one.outcome == "fail" for one in tries)
    most = (work.val.get("few") or {}).get(key.rpartition(":")[2], work.val.get("most"))
    if not tries or most is None:
        return False
    touched = touches(index, key, tries, since=tries[0].begun, until=until, of_agents=key in index.nodes)
    return failed + touched >= int(most)


def _tries(index: HistoryIndex, key: str) -> list[Operation]:
    """Return a task's executions, and the grants to start it (each as its agent's operation), in order of time."""
    granted = (one for one in index.versioned("state", key) if one.val["state"] == "working")
    begun = (replace(one, proc=one.val["agent"]) for one in granted)
    return sorted([*index.about("execute", key), *begun], key=lambda one: one.begun)


def repeats(index: HistoryIndex, key: str, runs: Sequence[Operation]) -> int:
    """Return how often a task may have been executed again: for the faults that touched it, and agents that drained.

    An agent that drains gives back what it has not completed, so that an execution elsewhere follows.
    """
    until, drained = runs[-1].begun, _drained(index)
    touched = touches(index, key, runs, since=in_hand(index, key, runs[0]), until=until)
    cut = (one for one in runs if one.proc in drained and (one.outcome != "ok" or one.ended >= drained[one.proc].begun))
    lives = {one.proc for one in cut if _met(drained[one.proc], one.begun, until)}
    return touched + len(lives)


def touches(
    index: HistoryIndex, key: str, runs: Sequence[Operation], *, since: float, until: float, of_agents: bool = False
) -> int:
    """Return how many faults, and take-overs of the task's shard, may have hit a task from `since` to `until`.

    The agents that executed the task and ended by themselves, up to 90 s after `until`, count as well. `of_agents`:
    count only them, and faults of the agents that had the task.
    """
    lives = {one.proc for one in runs}
    ends = (end for life, end in _ended_alone(index).items() if life in lives)
    posts, ended = {post_of(one) for one in lives}, sum(_met(end, since, until + LEFT_SECONDS) for end in ends)
    own = [one for one in index.faults if one.key.startswith("agent") and _holds(posts, one.key)]
    if of_agents:
        return ended + sum(_met(one, since, until) for one in own)
    faults = [*own, *(one for one in index.faults if not one.key.startswith("agent"))]
    shards = {f"shard-{one.val['shard']}" for one in index.about("claim", key)}
    moves = [one for shard in shards for one in _taken_over(index, shard)]
    return ended + sum(_met(one, since, until) for one in (*faults, *moves))


def _ended_alone(index: HistoryIndex) -> dict[str, Operation]:
    """Return the ends of the processes that ended by themselves because a server was away, by their names."""
    return {one.val["life"]: one for one in index.of("trouble") if "life" in one.val}


def _drained(index: HistoryIndex) -> dict[str, Operation]:
    """Return the orderly ends of the agents that a task asked to end, each from when it was asked, by their names."""
    asked = {one.proc: one.begun for one in reversed(index.of("terminate"))}
    ends = ((one.val.get("life"), one) for one in index.of("restart"))
    return {life: replace(one, begun=asked[life]) for life, one in ends if life in asked}


def _by_agent(index: HistoryIndex, ends: Mapping[str, Operation]) -> dict[str, Operation]:
    """Return the ends of processes by the ids of their agents, which their executions tell.

    A post's next process is another agent, which lives.
    """
    return {one.val["agent"]: ends[one.proc] for one in index.of("execute") if one.proc in ends and "agent" in one.val}


def _taken_over(index: HistoryIndex, shard: str) -> Iterator[Operation]:
    """Yield the changes of a shard's owner before which the former owner had not released the shard."""
    known = [one for one in index.versioned("lease", shard) if one.happened or one.val["owner"]]
    for before, after in pairwise(known):
        if before.val["owner"] and after.val["owner"] not in ("", before.val["owner"]):
            yield after


def _holds(posts: Collection[str], post: str) -> bool:
    """Tell whether a set of names has a process's name, or an agent id made of that name and a random suffix."""
    return post in posts or any(one.startswith(f"{post}-") for one in posts)


def _met(event: Operation, since: float, until: float) -> bool:
    ended = event.begun if event.f == "lease" else event.ended
    return event.begun <= until and ended + MOMENT_SECONDS >= since
