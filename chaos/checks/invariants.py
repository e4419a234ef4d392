"""The promises about the ledger, each a pure function of a history, and the list of all promises.

An operation with an unknown outcome may have happened at any time after it began: it excuses, and it never accuses.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from chaos.checks.check import CheckResult
from chaos.checks.collaboration.decisions import decided_once
from chaos.checks.collaboration.patterns import patterns_join
from chaos.checks.collaboration.threads import threads_kept
from chaos.checks.collaboration.votes import majority_counts
from chaos.checks.compensations import undone_in_reverse
from chaos.checks.coordination.approvals import approved_first
from chaos.checks.coordination.keys import keys_exclude
from chaos.checks.coordination.locks import locks_exclude, tickets_once
from chaos.checks.coordination.probes import one_probe
from chaos.checks.coordination.rates import rate_kept
from chaos.checks.coordination.restores import restored_whole
from chaos.checks.coordination.schedules import one_run_a_tick
from chaos.checks.coordination.streams import parts_in_order
from chaos.checks.coordination.sub_workflows import child_ends_first
from chaos.checks.coordination.triggers import one_run_an_event
from chaos.checks.coordination.waiting import signals_once, timers_fire
from chaos.checks.crashes import no_crash
from chaos.checks.executions import as_meant, dag_order, deaths_proven, executions
from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation
from chaos.checks.live_set import live_set
from chaos.checks.poison import poison_contained
from chaos.checks.recovery import recovered
from chaos.checks.requests import given_as_asked, held, keys_once, nodes_as_meant
from chaos.checks.slots import no_idle_slot
from chaos.checks.waits import p0_soon, p2_progress
from chaos.history import HistoryEntry

GONE_WITH_THE_BROKER = ("broker.wipe",)
"""The kinds of faults that may lose a direct task in flight, which only the broker holds."""
ANSWERED_SECONDS = 5.0
"""The time after a task's end by which its answer has certainly arrived, if there is no fault."""


def judge(entries: Iterable[HistoryEntry]) -> list[CheckResult]:
    """Check every promise on a chaos run's history, and return the results."""
    index = HistoryIndex(entries)
    return [check(index) for check in CHECKS]


def nothing_lost(index: HistoryIndex) -> CheckResult:
    """Invariant I1: check that accepted work ends; only a wipe of the broker's disk may lose a direct task."""
    ended = {one.key for one in index.of("end") if one.happened}
    wiped = [one for one in index.faults if one.val.get("kind") in GONE_WITH_THE_BROKER]
    violations = [
        f"{work.key} was accepted by {work.proc} and never ended"
        for work in index.accepted
        if work.key not in ended and not (_is_direct(work) and _is_excused(index, work, wiped))
    ]
    return CheckResult("nothing lost", "accepted work ends", len(index.accepted), tuple(violations))


def _is_excused(index: HistoryIndex, work: Operation, wiped: Iterable[Operation]) -> bool:
    return _is_late(index, work) or any(_was_there(index, work, one) for one in wiped)


def _is_late(index: HistoryIndex, work: Operation) -> bool:
    """Tell whether a direct task was not lost but late: it ran to its end about when the client gave up, or later.

    On a busy machine the faults take longer than the load waits; what is late is judged by `recovered in time`.
    """
    runs = _runs(index, work)
    late = [one.ended - ANSWERED_SECONDS for one in index.about("end", work.key)]
    return any(run.ended > since and not _is_answered(index, work, since) for since in late for run in runs)


def _was_there(index: HistoryIndex, work: Operation, wipe: Operation) -> bool:
    """Tell whether a direct task or its answer may have been in the broker when its data was wiped.

    The task was published before the broker was back, it was not answered before, and no agent got it afterwards.
    """
    answered = _is_answered(index, work, wipe.begun - ANSWERED_SECONDS)
    survived = any(one.begun > wipe.ended for one in _runs(index, work))
    return work.begun <= wipe.ended and not answered and not survived


def _is_answered(index: HistoryIndex, work: Operation, before: float) -> bool:
    """Tell whether a direct task was executed to its end before an instant, in times so calm that it was answered."""
    done = (one.ended for one in _runs(index, work) if one.ended < before)
    return any(_is_calm(index, instant, instant + ANSWERED_SECONDS) for instant in done)


def _runs(index: HistoryIndex, work: Operation) -> list[Operation]:
    """Return a direct task's executions to its end: successful ones, also of its call, and a failed last attempt."""
    calls = [one for one in index.of("call") if one.val.get("task") == work.key]
    runs = index.about("execute", work.key)
    last = [one for one in runs if not one.possible and one.val.get("attempt", 0) >= work.val.get("most", math.inf)]
    return [one for one in (*runs, *calls) if one.happened] + last


def _is_calm(index: HistoryIndex, since: float, until: float) -> bool:
    return not any(one.begun <= until and one.ended >= since - ANSWERED_SECONDS for one in index.faults)


def one_end_each(index: HistoryIndex) -> CheckResult:
    """Invariant I2: check that a node becomes terminal at most once, unless a redrive or restore was requested."""
    nodes = dict(index.by_key("state"))
    violations = [told for key in nodes for told in _second_ends(index, key)]
    return CheckResult("one end each", "a node becomes terminal once", len(nodes), tuple(violations))


def _second_ends(index: HistoryIndex, key: str) -> Iterator[str]:
    asked = index.redrives(key)
    end: Operation | None = None
    for one in index.versioned("state", key):
        if not one.happened:
            continue
        again = end is not None and any(place <= one.last for place in asked)
        same = end is not None and all(one.val[name] == end.val[name] for name in ("state", "fence", "attempt"))
        if end is not None and not again and not same:
            yield f"{key} was {end.val['state']} (fence {end.val['fence']}), then {one.val['state']}"
        if one.val["state"] in TERMINAL:
            end = one


def effects_once(index: HistoryIndex) -> CheckResult:
    """Invariant I2: check that a task made at most one side effect, and did make the one that its result names."""
    effects = {key: list(found) for key, found in index.by_key("effect")}
    results = {one.key: one for one in index.of("result") if one.val.get("state") == "completed"}
    violations = [f"{key} has {len(found)} effects" for key, found in effects.items() if len(found) > 1]
    for key, result in results.items():
        token = result.val.get("token")
        if token is not None and not any(one.val["token"] == token for one in effects.get(key, ())):
            violations.append(f"{key} completed, and the effect that its result tells of is not there")
    return CheckResult(
        "effects exactly once", "a keyed effect is made once", len(effects.keys() | results.keys()), tuple(violations)
    )


def one_completion(index: HistoryIndex) -> CheckResult:
    """Invariant I2: check that a completed node has one completed attempt, and at most one more for each restore."""
    done = [one for one in index.of("result") if one.val.get("state") == "completed" and "completed" in one.val]
    violations = [
        f"{one.key} has {one.val['completed']} completed attempts"
        for one in done
        if not 1 <= one.val["completed"] <= 1 + len(index.restores(one.key))
    ]
    return CheckResult("one completion", "a node has one completed attempt", len(done), tuple(violations))


def fences(index: HistoryIndex) -> CheckResult:
    """Invariant I4: check that a node's fences and publication numbers grow, and so do the epochs of shards' leases.

    Each execution of a node has a fence of its own, and the epoch of a shard grows with each owner.
    """
    checked, violations = _epochs(index)
    for key, _ in index.by_key("claim"):
        known = [one for one in index.versioned("claim", key) if one.happened]
        checked += len(known)
        for before, after in pairwise(known):
            same_shard = before.val["shard"] == after.val["shard"]
            if after.val["fence"] <= before.val["fence"]:
                violations.append(f"the fence of {key} went from {before.val['fence']} to {after.val['fence']}")
            elif same_shard and after.val["publication"] <= before.val["publication"]:
                violations.append(f"{key} was published as {after.val['publication']} after a higher number")
    nodes = index.nodes
    for key, runs in index.by_key("execute"):
        fences = Counter(one.val.get("fence") for one in runs) if key in nodes else Counter[Any]()
        repeated = [(fence, many) for fence, many in fences.items() if many > 1]
        violations += [f"{key} was executed {many} times under fence {fence}" for fence, many in repeated]
    return CheckResult("fences grow", "each publication and execution has its own", checked, tuple(violations))


def _epochs(index: HistoryIndex) -> tuple[int, list[str]]:
    checked, violations = 0, []
    for shard, _ in index.by_key("lease"):
        known = [one for one in index.versioned("lease", shard) if one.happened]
        checked += len(known)
        for before, after in pairwise(known):
            (owner, epoch), (next_owner, next_epoch) = ((one.val["owner"], one.val["epoch"]) for one in (before, after))
            if next_epoch < epoch or (next_epoch == epoch and next_owner not in ("", owner)):
                violations.append(f"{shard} went from {owner} ({epoch}) to {next_owner} ({next_epoch})")
    return checked, violations


def stale_writes(index: HistoryIndex) -> CheckResult:
    """Invariant I4: check that a node's recorded result has the newest fence, or is by the agent that was granted it.

    A value of an older fence is permitted from the very agent to which the newest was granted: that agent had the
    task already, and went on.
    """
    told = [one for one in index.of("result") if one.val.get("by") is not None]
    violations = [
        f"{one.key} has the value of fence {one.val['by']} by {one.val['maker']}, its fence was {one.val['fence']}"
        for one in told
        if one.val["by"] != one.val["fence"] and not _went_on(index, one)
    ]
    return CheckResult("no stale write", "a late result is refused", len(told), tuple(violations))


def _went_on(index: HistoryIndex, result: Operation) -> bool:
    newest, maker = result.val["fence"], result.val["maker"]
    granted = (one for one in index.about("state", result.key) if one.possible and one.val["state"] == "working")
    return any(one.val["fence"] == newest and one.val.get("agent") == maker for one in granted)


def publications(index: HistoryIndex) -> CheckResult:
    """Check that each publication number of a shard is for one node and fence, and is claimed before the publish."""
    owners: dict[tuple[int, int], set[tuple[str, int]]] = defaultdict(set)
    violations = []
    for one in (*index.of("claim"), *index.of("publish")):
        if one.happened or one.f == "publish":
            owners[_number(one)].add((one.key, one.val["fence"]))
    possible = {_number(one): one.first for one in reversed(index.of("claim")) if one.possible}
    for number, owner in owners.items():
        if len(owner) > 1:
            violations.append(f"publication {number[1]} of shard {number[0]} was given to {sorted(owner)}")
    for one in index.of("publish"):
        if _number(one) not in possible or one.first < possible[_number(one)]:
            violations.append(f"{one.key} was published as {one.val['publication']} without a claim")
    return CheckResult(
        "publications unique", "a number is given once, and claimed first", len(owners), tuple(violations)
    )


def _number(one: Operation) -> tuple[int, int]:
    return one.val["shard"], one.val["publication"]


def outbox_kept(index: HistoryIndex) -> CheckResult:
    """Check that what the ledger counts as confirmed is with the broker, so that no crash can prevent a publish.

    A publication that is not confirmed may be passed over once its node has ended or is published again, or when the
    shard is rebuilt, which publishes the node again.
    """
    sent = {_number(one): one.last for one in reversed(index.of("publish")) if one.happened}
    claims: dict[str, list[Operation]] = defaultdict(list)
    for one in index.of("claim"):
        if one.happened:
            claims[f"shard-{one.val['shard']}"].append(one)
    violations = []
    for shard, confirms in index.by_key("confirmed"):
        for claim in claims[shard]:
            until = min((one.first for one in confirms if one.possible and _covers(one, claim)), default=None)
            if until is not None and sent.get(_number(claim), until) >= until and not _is_settled(index, claim, until):
                violations.append(f"{claim.key} counts as confirmed as {claim.val['publication']}, and was not sent")
    return CheckResult(
        "outbox kept", "what counts as sent is with the broker", sum(map(len, claims.values())), tuple(violations)
    )


def _covers(confirm: Operation, claim: Operation) -> bool:
    return bool(confirm.val["number"] >= claim.val["publication"] and confirm.val["version"] > claim.val["version"])


def _is_settled(index: HistoryIndex, claim: Operation, until: float) -> bool:
    """Tell whether a claim without a confirm needed none any more at an index of the history."""
    later = [
        *(one for one in index.about("state", claim.key) if one.val["state"] != "published"),
        *index.about("claim", claim.key),
        *(one for one in index.about("built", f"shard-{claim.val['shard']}")),
    ]
    return any(one.possible and one.first < until and one.val["version"] > claim.val["version"] for one in later)


def recorded_before_acked(index: HistoryIndex) -> CheckResult:
    """Check that a result is acknowledged only after the ledger has recorded it or has made it stale."""
    acks = index.of("ack")
    violations = [
        f"{ack.key}'s result (fence {ack.val['fence']}) was acknowledged before it was recorded"
        for ack in acks
        if not any(_moved_on(one, ack) for one in index.about("state", ack.key))
    ]
    return CheckResult(
        "recorded, then acked", "results are acknowledged after the commit", len(acks), tuple(violations)
    )


def _moved_on(state: Operation, ack: Operation) -> bool:
    """Tell whether a transaction, perhaps committed before the ack, recorded the acked result or made it stale.

    Another process may have been stopped between its commit and the record of the commit. The acknowledging process has
    read the commit in the store. A node that is ready under the result's own fence was given back, or is tried again.
    """
    if not state.possible or state.first > ack.first:
        return False
    if state.proc == ack.proc and state.last > ack.first:
        return False  # who acks has heard of its own commit
    fence = state.val["fence"]
    waiting = state.val["state"] in ("blocked", "published", "working")
    return bool(
        fence > ack.val["fence"] or (fence == ack.val["fence"] and not waiting) or state.val["state"] in TERMINAL
    )


def conservation(index: HistoryIndex) -> CheckResult:
    """Invariant I8: check that at the end the ledger knows each accepted workflow, and none that was not submitted."""
    census = {one.key: one.val.get("state") for one in index.of("census")}
    sure = {one.key for one in index.accepted}
    maybe = {one.key for one in index.of("accept") if one.possible}
    there = {key for key, state in census.items() if state is not None}
    keys = {one.key for one in index.of("submit") if one.possible}
    keyed = {one.key for one in index.of("census") if one.val.get("submitted") in keys}
    violations = [f"{key} is there, and was not submitted" for key in sorted(there - maybe - keyed)]
    missing = sorted((sure & census.keys()) - there)
    violations += [f"{key} was submitted, and is neither terminal, live nor dead" for key in missing]
    return CheckResult("conservation", "submitted = terminal + live + dead", len(census), tuple(violations))


def balance(index: HistoryIndex) -> CheckResult:
    """Check that the audit of the ledger at the end found no contradiction."""
    audits = index.of("audit")
    violations = tuple(wrong for one in audits for wrong in one.val["wrong"])
    return CheckResult(
        "ledger balances", "rows, counts and indexes agree", sum(one.val["rows"] for one in audits), violations
    )


def nothing_left(index: HistoryIndex) -> CheckResult:
    """Check that at the end no message waits in the task queues; in simulations none is unacknowledged, either."""
    looks = index.of("left")
    violations = tuple(f"{one.key} has {one.val['messages']} messages" for one in looks if one.val["messages"])
    return CheckResult("nothing left over", "in the end the queues are empty", len(looks), violations)


def durable_acceptance(index: HistoryIndex) -> CheckResult:
    """Invariant I9: check that the ledger still knows each workflow whose acceptance was confirmed to a client."""
    accepted = [work for work in index.accepted if not _is_direct(work)]
    census = {one.key: one.val.get("state") for one in index.of("census")}
    violations = [
        f"{work.key} was accepted, and the ledger does not know it"
        for work in accepted
        if census and census.get(work.key) is None
    ]
    return CheckResult("acceptance durable", "an accepted workflow stays known", len(accepted), tuple(violations))


def _is_direct(work: Operation) -> bool:
    return not work.val.get("nodes")


CHECKS: tuple[Callable[[HistoryIndex], CheckResult], ...] = (
    nothing_lost,
    as_meant,
    undone_in_reverse,
    one_end_each,
    one_completion,
    effects_once,
    dag_order,
    fences,
    stale_writes,
    locks_exclude,
    tickets_once,
    keys_exclude,
    one_probe,
    one_run_a_tick,
    one_run_an_event,
    child_ends_first,
    restored_whole,
    rate_kept,
    parts_in_order,
    approved_first,
    decided_once,
    threads_kept,
    majority_counts,
    patterns_join,
    timers_fire,
    signals_once,
    p0_soon,
    p2_progress,
    no_idle_slot,
    executions,
    deaths_proven,
    poison_contained,
    nodes_as_meant,
    given_as_asked,
    held,
    keys_once,
    live_set,
    recovered,
    conservation,
    balance,
    nothing_left,
    durable_acceptance,
    publications,
    outbox_kept,
    recorded_before_acked,
    no_crash,
)
