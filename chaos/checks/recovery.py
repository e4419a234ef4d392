"""The promise that work which a fault held up goes on elsewhere within a stated time.

Only a wait that a single fault met is judged: a wait with several faults has no stated time. A wait begins when a task
could be executed, or when the fault took its execution away, and ends when the task is executed or over. On a machine
that is slow in calm times, recovery may take as much longer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chaos.checks.check import CheckResult
from chaos.checks.coverage import Spans, executed_spans
from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation
from chaos.faults.schedule import BROKER_PART, SLOW
from chaos.history import UNENDED, post_of
from chaos.load.work import SLOTS
from coditect.workflow.definition import COMPENSATION

BEGINS: Mapping[str, float] = {"agent.kill": 2.0, "agent.stop": 6.0, "dispatcher.kill": 6.0}
"""The longest time from the beginning of a process's fault until its work has begun elsewhere, by kind.

Of a hundred 99 take 1 s after an agent's death, 5 s after it was stopped or cut off, 4 s after a dispatcher's death.
"""
CUT_OFF_SECONDS = 6.0
"""The longest time from an agent's cut-off from the broker until its work has begun elsewhere."""
ENDS_SECONDS = 11.0
"""The longest time from the end of any other fault until the held-up work has begun.

A lost answer is requested again every 5 s, maybe twice. Redis's lost data is shown to RQ again within 1 s, and taken
from it at once. If Redis did not answer for the nodes that RQ had handed out, that is found after 15 s, when RQ is
compared, if RQ brings others of its capability meanwhile: no seed has shown that yet, and it is beyond this time.
"""
APART_SECONDS = 6.0
"""The distance between two faults below which waits are not judged, since both faults may be the cause."""
MOST_SLOWER_SECONDS = 5.0
"""The largest allowance for a slow machine that is added to the promised times."""
LEAST_LATE_SECONDS = 0.1
"""The lateness from which a wait counts as late: the calm waits of one run bound what is usual no closer."""


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A task's wait from when it could be executed until it was executed or ended."""

    key: str
    since: float
    until: float


def recovered(index: HistoryIndex) -> CheckResult:
    """Check that work which one fault held up has begun or ended within the time promised for that fault."""
    faults = index.faults
    runs = sorted(span for spans in executed_spans(index).values() for span in spans)
    places, begun = Spans(runs), [since for since, _ in runs]
    waits = sorted(_waits(index), key=lambda one: one.since)
    calm = (one.until - one.since for one in waits if not _near(faults, one))
    slow = min(MOST_SLOWER_SECONDS, max([0.0, *calm]))
    checked, violations = 0, []
    for one in waits:
        near = _near(faults, one)
        if len(near) != 1 or one.since > (deadline := _deadline(near[0])) or _is_full(index, places, begun, one):
            continue
        checked += 1
        late = one.until - deadline - slow
        if late > LEAST_LATE_SECONDS:
            waited = one.until - one.since
            violations.append(f"{one.key} waited {waited:.1f} s, {late:.1f} s too long after {_kind(near[0])}")
    return CheckResult("recovered in time", "what a fault held up goes on soon", checked, tuple(violations))


def _kind(fault: Operation) -> str:
    return str(fault.val.get("kind", fault.f)).partition(" at ")[0]


def _deadline(fault: Operation) -> float:
    seconds = CUT_OFF_SECONDS if _is_cut_off(fault) else BEGINS.get(_kind(fault))
    return fault.ended + ENDS_SECONDS if seconds is None else fault.begun + seconds


def _is_cut_off(fault: Operation) -> bool:
    return fault.key.startswith("agent") and _kind(fault) == BROKER_PART and fault.val.get("manner") != SLOW


def _near(faults: Sequence[Operation], wait: HeldUp) -> list[Operation]:
    """Return the faults that may have caused the wait: those during the wait or shortly before."""
    since, until = wait.since - APART_SECONDS, wait.until
    return [one for one in faults if one.begun <= until and one.ended >= since]


def _is_full(index: HistoryIndex, places: Spans, begun: Sequence[float], wait: HeldUp) -> bool:
    """Tell whether a lack of slots may explain the wait: at some time all agents but one may have been full."""
    looks = [one for one in index.of("look") if one.begun <= wait.until]
    fewest = min((len(one.val["at_work"]) for one in looks if one.begun >= wait.since - APART_SECONDS), default=0)
    within = begun[bisect_left(begun, wait.since) : bisect_right(begun, wait.until)]
    most = max(places.open_at(instant) for instant in (wait.since, *within))
    return most >= max(1, fewest - 1) * (SLOTS - 1)


def _waits(index: HistoryIndex) -> Iterator[HeldUp]:
    """Yield the waits of every accepted task that no pause, cancel, redrive, restore or approval held.

    A direct task that calls the dependency waits for that.
    """
    held = {one.key for f in ("pause", "cancel", "redrive", "restore", "grant") for one in index.of(f)}
    for work in index.accepted:
        nodes = work.val.get("nodes")
        if not nodes:
            if not work.val.get("calls"):
                yield from _executed(index, work.key, [(0.0, work.ended)])
        elif work.key not in held:
            undone = {f"{name}{COMPENSATION}" for name in work.val.get("undo") or ()}  # not before the workflow fails
            special = {*(work.val.get("joins") or {}), *(work.val.get("meant") or {}), *undone}
            for name in nodes:
                key = f"{work.key}:{name}"
                claims = [(one.begun, one.ended) for one in index.about("claim", key) if one.happened]
                yield from _executed(index, key, claims)
                if name not in special and key not in held:
                    yield from _recorded(index, work, name)


def _executed(index: HistoryIndex, key: str, ready: Sequence[tuple[float, float]]) -> Iterator[HeldUp]:
    """Yield a task's waits until the next execution or end, from each time it became ready or was interrupted.

    `ready` has pairs of the times when the task became ready and when that was recorded; an agent may begin in between.
    """
    runs = index.about("execute", key)
    over = [one.begun for one in index.about("state", key) if one.possible and one.val["state"] in TERMINAL]
    ends = sorted([*over, *(one.begun for one in index.about("end", key)), *(one.begun for one in runs)])
    taken = [(one.begun, run.ended) for run in runs for one in _taken(index, run) if run.begun < one.begun < run.ended]
    waits = [since for begun, since in ready if not any(begun <= run.begun <= since for run in runs)]
    for since, at_most in (*((one, UNENDED) for one in waits), *taken):
        after = bisect_right(ends, since)
        until = min(ends[after] if after < len(ends) else UNENDED, at_most)
        if until < UNENDED:
            yield HeldUp(key, since, until)


def _recorded(index: HistoryIndex, work: Operation, name: str) -> Iterator[HeldUp]:
    """Yield the wait from the end of a node's last predecessor to the record of its readiness, if each ran once."""
    done = [
        [one.ended for one in index.about("execute", f"{work.key}:{before}") if one.happened]
        for before in work.val["nodes"][name]
    ]
    known = [one.ended for one in index.about("state", f"{work.key}:{name}") if one.happened]
    if all(len(ends) == 1 for ends in done) and known:
        yield HeldUp(f"{work.key}:{name}", max(work.ended, *(ends[0] for ends in done), 0.0), known[0])


def _taken(index: HistoryIndex, run: Operation) -> Iterator[Operation]:
    """Yield the faults that may have interrupted an execution: its agent was killed, stopped or cut off."""
    post = post_of(run.proc)
    yield from (*index.about("kill", post), *index.about("stop", post), *filter(_is_cut_off, index.about("part", post)))
