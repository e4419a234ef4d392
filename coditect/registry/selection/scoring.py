"""The score of an agent for the next task, as one number in (0, 1], by a pure function.

::

    score = free^w1 · capacity^w2 · cpu^w3 · memory^w4 · health^w5 · latency^w6 · overlap^w7

    free      1 - (running + suspended / 2) / slots          the share of its slots that is left
    capacity  free slots / those of the agent that has most  slots / most slots when all slots are in use
    cpu       1 - cpu_percent / 100                          of one core
    memory    1 GiB / (1 GiB + resident_bytes)               half at 1 GiB
    health    (completed + 10) / (completed + failed attempts + 10)   1 for a new agent
    latency   (fastest + 10 ms) / (latency_ms + 10 ms)       1 for the fastest agent, and for a new one
    overlap   criteria that it meets / all criteria          1 without criteria

Each term is mapped from [0, 1] to [FLOOR, 1], so that no term is a veto: when all agents are equally full the other
terms decide, and an agent that recovered is noticed by the little work that it still gets. The score is a product,
because an agent that is bad at one thing is not made good by the others. A weight of 0 leaves a term out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

from coditect.model.registration import AgentRecord, Registration
from coditect.model.strategy import ANYTHING, Wanted
from coditect.registry.port import texts_of

FLOOR = 0.02
SUSPENDED_SHARE = 0.5
"""The share of a slot that a suspended task counts for: it holds none now, but takes the next free one."""
MEMORY_BYTES = 1024**3
TRUSTED_SUCCESSES = 10
LATENCY_MS = 10.0
"""The milliseconds added to each latency in the score, so that smaller differences hardly count."""


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The seven terms of one agent's score, each in [0, 1]; more is better."""

    free: float
    capacity: float
    cpu: float
    memory: float
    health: float
    latency: float
    overlap: float


_TERMS = tuple(term.name for term in fields(ScoreTerms))


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each term in the score: an exponent, at least 0."""

    free: float = 0.0
    capacity: float = 0.0
    cpu: float = 0.0
    memory: float = 0.0
    health: float = 0.0
    latency: float = 0.0
    overlap: float = 0.0


LOAD_BALANCED = Weights(free=0.5, capacity=1.0, cpu=0.5, memory=0.25, health=2.0, latency=1.0)
BEST_MATCH = Weights(free=0.5, capacity=0.25, health=1.0, overlap=3.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """The largest free capacity, the most slots and the lowest latency of any agent, which scores compare with."""

    most_room: float
    most_slots: int
    fastest_ms: float
    """The lowest latency of the agents in ms; 0 when no agent has run a task yet."""

    @classmethod
    def of(cls, records: Sequence[AgentRecord]) -> Self:
        """Return the scale for the agents' scores: their largest free capacity, most slots and lowest latency."""
        return cls(
            most_room=max((_room(record) for record in records), default=0.0),
            most_slots=max((record.registration.slots for record in records), default=0),
            fastest_ms=min((one.load.latency_ms for one in records if one.load.latency_ms > 0), default=0.0),
        )


def score(record: AgentRecord, weights: Weights, scale: Scale, wanted: Wanted = ANYTHING) -> float:
    """Return the score of an agent for the next task, in (0, 1]: the weighted product of the score's terms."""
    terms = terms_of(record, scale, wanted)
    product = 1.0
    for name in _TERMS:
        weight = getattr(weights, name)
        if weight:
            product *= (FLOOR + (1 - FLOOR) * getattr(terms, name)) ** weight
    return float(product)


def terms_of(record: AgentRecord, scale: Scale, wanted: Wanted = ANYTHING) -> ScoreTerms:
    """Return the seven terms of an agent's score, scaled by the best values in the fleet."""
    load, slots, room = record.load, record.registration.slots, _room(record)
    capacity = room / scale.most_room if scale.most_room > 0 else slots / max(1, scale.most_slots)
    seen = load.completed + TRUSTED_SUCCESSES
    quick = scale.fastest_ms + LATENCY_MS
    return ScoreTerms(
        free=_bounded(room / max(1, slots)),
        capacity=_bounded(capacity),
        cpu=_bounded(1 - load.cpu_percent / 100),
        memory=_bounded(MEMORY_BYTES / (MEMORY_BYTES + max(0, load.resident_bytes))),
        health=_bounded(seen / (seen + max(0, load.failed_attempts))),
        latency=_bounded(quick / (load.latency_ms + LATENCY_MS)) if load.latency_ms > 0 else 1.0,
        overlap=overlap(record.registration, wanted),
    )


def overlap(agent: Registration, wanted: Wanted) -> float:
    """Return the share of the wanted tags, capabilities and keywords that an agent has; 1 without criteria."""
    if not len(wanted):
        return 1.0
    tags = agent.all_tags
    offers = {offer.name for offer in agent.capabilities}
    texts = [text.casefold() for text in texts_of(agent)] if wanted.keywords else []
    has = sum(tag in tags for tag in wanted.tags)
    has += sum(name in offers for name in wanted.capabilities)
    has += sum(any(keyword.casefold() in text for text in texts) for keyword in wanted.keywords)
    return has / len(wanted)


def _room(record: AgentRecord) -> float:
    load = record.load
    return max(0.0, record.registration.slots - load.running - SUSPENDED_SHARE * load.suspended)


def _bounded(term: float) -> float:
    return min(1.0, max(0.0, term))
