"""The causes of a service's trouble, and three methods that find one in the same evidence.

A cause explains certain symptoms. The methods differ in how they weigh them, so that a mistake in one is outvoted by
the two others.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from agents.healing.evidence import Bounds, ServiceEvidence


class Cause(StrEnum):
    """Why a service is not well."""

    KILLED = "process_killed"
    CONFIGURATION = "bad_configuration"
    PORT = "port_taken"
    DISK = "disk_full"
    FLOOD = "log_flood"
    HUNG = "hung"
    LEAK = "memory_leak"
    NONE = "none"
    """Nothing is found."""


class Symptom(StrEnum):
    """A sign that a service is unwell: a fact that is not as it should be."""

    GONE = "gone"
    SILENT = "silent"
    FAILING = "failing"
    REFUSED = "refused"
    """Its configuration is refused."""
    TAKEN = "taken"
    """Another process listens at its port."""
    FULL = "full"
    LARGE = "large"
    LOUD = "loud"


EXPLAINED: Mapping[Cause, frozenset[Symptom]] = {
    Cause.CONFIGURATION: frozenset({Symptom.REFUSED, Symptom.GONE, Symptom.FAILING, Symptom.SILENT}),
    Cause.PORT: frozenset({Symptom.TAKEN, Symptom.GONE, Symptom.FAILING, Symptom.SILENT}),
    Cause.DISK: frozenset({Symptom.FULL, Symptom.FAILING, Symptom.GONE}),
    Cause.FLOOD: frozenset({Symptom.LOUD, Symptom.FULL}),
    Cause.LEAK: frozenset({Symptom.LARGE, Symptom.SILENT}),
    Cause.HUNG: frozenset({Symptom.SILENT}),
    Cause.KILLED: frozenset({Symptom.GONE}),
    Cause.NONE: frozenset(),
}
"""The symptoms that each cause may lead to; a service that cannot begin is silent before it is gone."""
SIGN: Mapping[Cause, Symptom] = {
    Cause.CONFIGURATION: Symptom.REFUSED,
    Cause.PORT: Symptom.TAKEN,
    Cause.DISK: Symptom.FULL,
    Cause.FLOOD: Symptom.LOUD,
    Cause.LEAK: Symptom.LARGE,
    Cause.HUNG: Symptom.SILENT,
    Cause.KILLED: Symptom.GONE,
}
"""The sign of each cause: the symptom that always comes with it."""
_WEIGHTS = {Symptom.GONE: 1.0, Symptom.SILENT: 1.0, Symptom.FAILING: 0.5}
_HEAVY = 3.0
"""The weight of a symptom that few causes have."""


def symptoms(evidence: ServiceEvidence, bounds: Bounds) -> frozenset[Symptom]:
    """Return the symptoms that the evidence shows, by the bounds within which a service is well."""
    held = {
        Symptom.GONE: not evidence.running,
        Symptom.SILENT: evidence.running and not evidence.answers,
        Symptom.FAILING: evidence.answers and bool(evidence.health),
        Symptom.REFUSED: bool(evidence.configuration),
        Symptom.TAKEN: evidence.port_owner == "other",
        Symptom.FULL: evidence.free_mib < bounds.free_mib,
        Symptom.LARGE: evidence.memory_mib > bounds.memory_mib,
        Symptom.LOUD: evidence.log_mib > bounds.log_mib or evidence.log_mib_per_second > bounds.log_mib_per_second,
    }
    return frozenset(symptom for symptom, holds in held.items() if holds)


def by_rules(found: frozenset[Symptom]) -> Cause:
    """Return the first cause, in a fixed order of causes, whose typical symptom (sign) was found; else NONE."""
    return next((cause for cause, sign in SIGN.items() if sign in found), Cause.NONE)


def by_scores(found: frozenset[Symptom]) -> Cause:
    """Return the cause whose explained symptoms weigh most; one whose typical symptom was not found loses weight."""

    def score(cause: Cause) -> float:
        explained = EXPLAINED[cause]
        missing = SIGN[cause] not in found if cause in SIGN else bool(found)
        return sum(_WEIGHTS.get(one, _HEAVY) for one in explained & found) - missing * _HEAVY

    return max(EXPLAINED, key=score)


def by_exclusion(found: frozenset[Symptom]) -> Cause:
    """Return, of the causes whose sign was found, the one that leaves the fewest symptoms unexplained; else NONE."""
    left = [cause for cause, sign in SIGN.items() if sign in found]
    return min(left, key=lambda cause: (len(found - EXPLAINED[cause]), len(EXPLAINED[cause])), default=Cause.NONE)
