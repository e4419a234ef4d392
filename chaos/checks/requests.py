"""The promises about clients' requests: keys, pauses, cancels, conditions, inputs and priorities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checks.check import CheckResult
from chaos.checks.executions import used_up
from chaos.checks.history_index import HistoryIndex, Operation
from coditect.workflow.definition import COMPENSATION


def keys_once(index: HistoryIndex) -> CheckResult:
    """Check that an idempotency key starts one workflow, however often the request is sent."""
    meant: dict[str, set[str]] = defaultdict(set)
    for one in index.of("submit"):
        meant[one.key]
        if one.happened:
            meant[one.key].add(one.val["run"])
    for one in index.of("census"):
        if one.val.get("submitted"):
            meant[one.val["submitted"]].add(one.key)
    violations = [f"{key} means {', '.join(sorted(runs))}" for key, runs in meant.items() if len(runs) > 1]
    return CheckResult(
        "one key, one workflow", "a key that comes again is the same work", len(meant), tuple(violations)
    )


def held(index: HistoryIndex) -> CheckResult:
    """Check that no node begins in a paused workflow, and that no node is claimed after a cancel.

    A workflow counts as paused from the answer to the pause until the request to resume it. Compensations are not held.
    """
    resumes = {key: [one.first for one in asked] for key, asked in index.by_key("resume")}
    spans = {
        one.key: (one.f, one.last, min((place for place in resumes.get(one.key, ()) if place > one.last), default=1e18))
        for f in ("pause", "cancel")
        for one in index.of(f)
        if one.happened
    }
    violations = []
    for node, claims in index.by_key("claim"):
        span = spans.get(node.rpartition(":")[0])
        if span is None or node.endswith(COMPENSATION):
            continue
        asked, since, until = span
        new = claims[:1] if asked == "pause" else claims
        late = (one for one in new if one.happened and since < one.first < until)
        violations += [f"{node} was claimed at {one.begun:.3f}, after its workflow's {asked}" for one in late]
    return CheckResult("held when asked", "paused or canceled, nothing begins", len(spans), tuple(violations))


def nodes_as_meant(index: HistoryIndex) -> CheckResult:
    """Check that each node with an intended final state, such as skipped, ends in it, unless faults used up attempts.

    A node that is to be skipped never runs. Only faults that used all attempts up excuse another end.
    """
    checked, violations = 0, []
    ends = {one.key: one.val["state"] for one in index.of("result")}
    states = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        if states.get(work.key) not in ("completed", "failed"):
            continue
        ends_meant = work.val.get("meant") or {}
        excused = any(
            used_up(index, work, f"{work.key}:{name}")
            for name in work.val.get("nodes") or ()
            if "failed" not in ends_meant.get(name, ())  # that one uses its attempts up whatever happens
        )
        for name, meant in ends_meant.items():
            key = f"{work.key}:{name}"
            checked += 1
            if ends.get(key) not in meant and not excused:
                violations.append(f"{key} ended {ends.get(key)}, it was meant to be {' or '.join(meant)}")
            if "skipped" in meant and index.about("execute", key) and not excused:
                violations.append(f"{key} ran, and was to be skipped")
    return CheckResult("nodes as meant", "conditions and failures decide", checked, tuple(violations))


def given_as_asked(index: HistoryIndex) -> CheckResult:
    """Check that each execution has the requested priority and input.

    A map's element gets its item, a successor the token of its predecessor's effect, which is read from the agents'
    effects, not from the ledger.
    """
    tokens = {one.key: one.val["token"] for one in index.of("effect")}
    checked, violations = 0, []
    for work in index.accepted:
        for key, level, inputs in _asked(work, tokens):
            for one in index.about("execute", key):
                checked += 1
                if level is not None and one.val.get("priority", level) != level:
                    violations.append(f"{key} ran as {one.val['priority']}, it was asked for as {level}")
                if inputs is not None and one.val.get("after", inputs) != inputs:
                    violations.append(f"{key} was given {one.val['after']}, and should have been given {inputs}")
    return CheckResult("given as asked", "priority and input are those asked for", checked, tuple(violations))


def _asked(work: Operation, tokens: dict[str, str]) -> Iterator[tuple[str, str | None, list[str] | None]]:
    nodes = work.val.get("nodes")
    if not nodes:
        yield work.key, work.val.get("priority"), None
        return
    levels, inputs = work.val.get("levels") or {}, work.val.get("inputs") or {}
    for name in nodes:
        wanted = inputs.get(name)
        if wanted is not None:
            wanted = [tokens.get(f"{work.key}:{one}", one) for one in wanted]
        yield f"{work.key}:{name}", levels.get(name), wanted
