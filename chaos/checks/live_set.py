"""The promise that the registry lists the running agents, judged by regular reads of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation
from chaos.faults.schedule import BROKER_STOP
from chaos.history import post_of

PROMISED_SECONDS = 3.0
ALLOWED_SECONDS = 1.0
"""The tolerance beyond the promised 3 s, since the registry is read only once a second."""
GAP_SECONDS = 1.25
"""The distance between two reads of the registry above which the time between them is not judged.

A read begins once a second, however long it takes. Whoever reads also carries the bytes between each agent and Redis:
a read that comes late shows that the machine is too busy to carry the agents' renewals in time.
"""


def live_set(index: HistoryIndex) -> CheckResult:
    """Invariant I7: check that 3 s after any change an available registry lists exactly the living agents.

    Times in which the broker was silent are not judged: an agent that gets no answer lets its lease lapse.

    An agent must be listed if it was at work in all reads of those 3 s, and was neither stopped meanwhile nor cut off
    from a server. An agent must not be listed if it ran in none of these reads, and was not continued meanwhile: it was
    killed, or is stopped for longer than its lease.
    """
    looks = [one for one in index.of("look") if one.outcome != "info"]
    away = [one for one in index.faults if one.key == "redis" or one.val.get("kind") == BROKER_STOP]
    stops, parts = index.of("stop"), index.of("part")
    checked, violations = 0, []
    for place, look in enumerate(looks):
        window = _window(looks, place)
        if not look.happened or not window or any(_touches(window, one) for one in away):
            continue
        checked += 1
        stirred = {one.key for one in stops if _changes(window, one)}
        stirred |= {one.key for one in parts if _touches(window, one)}
        told = ((name, what) for name, what in _differences(window, looks[:place]) if post_of(name) not in stirred)
        violations += [f"{name} {what} at {look.begun:.1f}" for name, what in told]
    return CheckResult("registry true", "it lists who lives, 3 s later", checked, tuple(violations))


def _window(looks: Sequence[Operation], place: int) -> Sequence[Operation]:
    """Return the registry reads of the 4 s up to a given one; none if they cover less, or one came late."""
    since = looks[place].begun - PROMISED_SECONDS - ALLOWED_SECONDS
    first = place
    while first and looks[first].begun > since:
        if looks[first].begun - looks[first - 1].begun > GAP_SECONDS:
            return ()
        first -= 1
    return looks[first : place + 1] if looks[first].begun <= since else ()


def _touches(window: Sequence[Operation], fault: Operation) -> bool:
    return fault.begun <= window[-1].ended and fault.ended >= window[0].begun


def _changes(window: Sequence[Operation], stop: Operation) -> bool:
    """Tell whether an agent was stopped or continued in the time that the registry reads cover."""
    return any(window[0].begun <= instant <= window[-1].ended for instant in (stop.begun, stop.ended))


def _differences(window: Sequence[Operation], before: Sequence[Operation]) -> Iterator[tuple[str, str]]:
    listed = set(window[-1].val["listed"])
    at_work = set.intersection(*(set(one.val["at_work"]) for one in window))
    ran = {name for one in window for name in one.val["running"]}
    known = {name for one in before for name in one.val["running"]}.union(window[0].val.get("listed", ()))
    yield from ((name, "lives and is not listed") for name in sorted(at_work - listed))
    yield from ((name, "is listed and does not live") for name in sorted((listed & known) - ran))
