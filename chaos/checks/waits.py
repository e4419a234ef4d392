"""The promises about priorities, judged by how long tasks wait in times without faults.

The length of a wait is counted in the starts of other tasks, which a slow machine does not change.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation

CALM_SECONDS = 5.0
"""The time after a fault until all is as before: leases have ended, shards have moved, processes are back."""
MOST_BEFORE_P0 = 26
"""The most starts of lower priorities that a P0 task may wait for: two rounds of an agent's slots."""
MOST_BEFORE_P2 = 104
"""The most starts of later tasks that the first P2 task may wait for: two rounds of each of four agents."""
BETWEEN_P2S = 12
"""The starts that P0 and P1 may have between two starts of P2: a round of the weights, 8 and 4."""
CAN_BE_EXECUTED = frozenset({"ready", "published"})


@dataclass(frozen=True, slots=True)
class Wait:
    """A task's wait from when it could be executed until its first start, as times and as indexes in the history."""

    key: str
    priority: str
    ready_at: float
    ready: int
    start_at: float
    start: int


def p0_soon(index: HistoryIndex) -> CheckResult:
    """Invariant I5: check that in calm times a P0 task waits for at most 26 starts or resumptions of P1 or P2 tasks."""
    waits = _waits(index)
    going_on = [one.first for one in index.of("go on") if one.val["priority"] != "p0"]
    lower = sorted([*going_on, *(one.start for one in waits if one.priority != "p0")])
    judged = [one for one in waits if one.priority == "p0" and is_calm(index, one.ready_at, one.start_at)]
    passing = {one: bisect_left(lower, one.start) - bisect_right(lower, one.ready) for one in judged}
    violations = (_told(one, many) for one, many in passing.items() if many > MOST_BEFORE_P0)
    return CheckResult("P0 soon", "a P0 does not wait for a backlog", len(judged), tuple(violations))


def p2_progress(index: HistoryIndex) -> CheckResult:
    """Invariant I5: check that in calm times at most 104 later tasks, plus 12 per older P2 begun since, pass a P2."""
    waits = _waits(index)
    starts = [one.start for one in waits]
    judged = [one for one in waits if one.priority == "p2" and is_calm(index, one.ready_at, one.start_at)]
    meanwhile = {one: waits[bisect_right(starts, one.ready) : bisect_left(starts, one.start)] for one in judged}
    passing = {one: sum(other.ready > one.ready for other in others) for one, others in meanwhile.items()}
    violations = (_told(one, many) for one, many in passing.items() if many > _most_passing(one, meanwhile[one]))
    return CheckResult("P2 progress", "a P2 is not overtaken for ever", len(judged), tuple(violations))


def _most_passing(one: Wait, meanwhile: Sequence[Wait]) -> int:
    """Return how many later tasks may start before a P2 task: 104, plus 12 per older P2 task that started meanwhile."""
    before = sum(other.priority == "p2" and other.ready < one.ready for other in meanwhile)
    return MOST_BEFORE_P2 + BETWEEN_P2S * before


def _told(one: Wait, many: int) -> str:
    return f"{one.key} ({one.priority}) waited {one.start_at - one.ready_at:.1f} s, through {many} starts of others"


def _waits(index: HistoryIndex) -> list[Wait]:
    """Return the waits of all executed tasks, in the order of their first starts."""
    return sorted(_found(index), key=lambda one: one.start)


def _found(index: HistoryIndex) -> Iterator[Wait]:
    """Yield each task's wait from a node's readiness, or a direct task's acceptance, until the task's first start."""
    direct = {work.key: work for work in index.accepted}
    for key, priority in index.priorities.items():
        ready = direct.get(key) or _ready(index, key)
        runs = index.about("execute", key)
        if ready is not None and runs:
            start_at, start = max((ready.ended, int(ready.last)), (runs[0].begun, runs[0].first))
            yield Wait(key, priority, ready.ended, int(ready.last), start_at, start)


def _ready(index: HistoryIndex, node: str) -> Operation | None:
    states = index.about("state", node)
    return next((one for one in states if one.happened and one.val["state"] in CAN_BE_EXECUTED), None)


def is_calm(index: HistoryIndex, begun: float, ended: float) -> bool:
    """Tell whether there was no fault during a time, nor in the 5 s before."""
    return not any(fault.begun <= ended and fault.ended >= begun - CALM_SECONDS for fault in index.faults)
