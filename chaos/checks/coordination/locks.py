"""The checks of locks: one holder at a time, by the times and fences of the holders; and tickets that live once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation


def locks_exclude(index: HistoryIndex) -> CheckResult:
    """Invariant I4: check that no lock has two holders at once, and that its fence grows from each holder to the next.

    A holder counts from its grant to its end if it was not told that the lock was lost. A holder that was killed, or
    that lost its lock, proves nothing about the time behind its grant.
    """
    held = dict(index.by_key("hold"))
    violations = [told for key, holds in held.items() for told in _violations(key, holds)]
    return CheckResult("locks exclude", "a lock has one holder, and fences grow", _count(held), tuple(violations))


def tickets_once(index: HistoryIndex) -> CheckResult:
    """Check that no request for a lock gets a second place in line, however often and late the request arrives."""
    places = defaultdict[str, set[int]](set)
    for one in index.of("ticket"):
        if one.happened:
            places[one.val["ticket"]].add(one.val["place"])
    twice = ((ticket, sorted(found)) for ticket, found in places.items() if len(found) > 1)
    violations = [f"lock request {ticket} got the places {found}" for ticket, found in twice]
    return CheckResult("tickets live once", "no late request gets a lock", len(places), tuple(violations))


def _count(held: Mapping[str, Sequence[Operation]]) -> int:
    return sum(len(holds) for holds in held.values())


def _violations(key: str, holds: Sequence[Operation]) -> Iterator[str]:
    granted = sorted((one for one in holds if one.val["fence"]), key=lambda one: one.first)
    kept = [one for one in granted if one.happened]
    for one in kept:
        beside = (other for other in granted if one.first < other.first < one.last)
        for other in beside:
            yield f"{key} was held by {one.val['task']} until {one.ended:.3f}, and by {other.val['task']} meanwhile"
    for before, after in pairwise(kept):
        if after.val["fence"] <= before.val["fence"]:
            yield f"the fence of {key} went from {before.val['fence']} to {after.val['fence']}"
    for fence, many in Counter(one.val["fence"] for one in granted).items():
        if many > 1:
            yield f"{key} was held {many} times under fence {fence}"
