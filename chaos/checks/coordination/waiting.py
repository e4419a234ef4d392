"""The checks of nodes that wait without a task: timers fire in time and once, signals are delivered once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation
from chaos.load.generators import HEARD

EARLY_SECONDS = 0.5
"""How far the clocks of an agent and of a dispatcher may be apart."""


def timers_fire(index: HistoryIndex) -> CheckResult:
    """Check that a waiting node's timer fires at most once, not too early, and at all if its workflow completed.

    The wait is measured from the end of the node before it to the start of the node after it, by the agents' records.
    """
    checked, violations = 0, []
    states = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        for name, (milliseconds, before, after) in (work.val.get("timers") or {}).items():
            key = f"{work.key}:{name}"
            checked += 1
            begun = [one.begun for one in index.about("execute", f"{work.key}:{after}")]
            ended = [one.ended for one in index.about("execute", f"{work.key}:{before}") if one.happened]
            if begun and min(begun) < min(ended, default=0.0) + milliseconds / 1000 - EARLY_SECONDS:
                waited = min(begun) - min(ended)
                violations.append(f"{key} waited {waited:.3f} s, and was to wait {milliseconds / 1000:.3f} s")
            if not begun and states.get(work.key) == "completed":
                violations.append(f"{key} did not fire")
            known = [one.val["state"] for one in index.versioned("state", key) if one.happened]
            if sum(now != then == "completed" for now, then in pairwise(["", *known])) > 1:
                violations.append(f"{key} fired twice")
    return CheckResult("timers fire", "in time, and once", checked, tuple(violations))


def signals_once(index: HistoryIndex) -> CheckResult:
    """Check that a node gets only signals that were sent, none twice, and that a workflow with all its signals ends.

    What a node was given is read from the execution of its successor.
    """
    checked, violations = 0, list[str]()
    states = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        if work.val.get("signals"):
            sent = index.about("signal", work.key)
            checked += len({one.val["token"] for one in sent})
            violations += _undelivered(work, sent, index.about("execute", f"{work.key}:{HEARD}"))
            wanted = len({one.val["token"] for one in sent if one.happened}) == len(work.val["signals"])
            if wanted and states.get(work.key) not in (None, *TERMINAL):
                violations.append(f"{work.key} was sent all of its signals, and is {states[work.key]}")
    return CheckResult("signals once", "none is lost, none counts twice", checked, tuple(violations))


def _undelivered(work: Operation, sent: Sequence[Operation], heard: Sequence[Operation]) -> Iterator[str]:
    known = {one.val["token"] for one in sent}
    for one in heard:
        given = one.val["after"]
        if len(set(given)) < len(given):
            yield f"{work.key} was given one signal twice: {given}"
        if not known.issuperset(given):
            yield f"{work.key} was given {given}, and was sent {sorted(known)}"
