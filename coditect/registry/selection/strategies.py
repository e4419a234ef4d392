"""Which of several agents gets a task, when the sender picks one. Pure: turn and chance are passed in.

A pick is a preference: an agent that does not take the task leaves it to its capability's queue. Many tasks
at once are given out by `assignment`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import assert_never

from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.strategy import ANYTHING, Strategy, Wanted
from coditect.registry.selection.scoring import BEST_MATCH, LOAD_BALANCED, Scale, Weights, score


def choose(
    records: Iterable[AgentRecord], strategy: Strategy, *, turn: int, chance: float, wanted: Wanted = ANYTHING
) -> AgentRecord | None:
    """The agent for the next task; None when no agent may be chosen.

    `turn` grows by one with each choice (`Registry.next_turn`), `chance` is in [0, 1).
    """
    match strategy:
        case Strategy.ROUND_ROBIN:
            return round_robin(records, turn=turn)
        case Strategy.LEAST_BUSY:
            return least_busy(records, chance=chance)
        case Strategy.LOAD_BALANCED:
            return load_balanced(records, chance=chance)
        case Strategy.BEST_MATCH:
            return best_match(records, wanted, chance=chance)
        case _:
            assert_never(strategy)


def round_robin(records: Iterable[AgentRecord], *, turn: int) -> AgentRecord | None:
    """Each agent in its turn, in the order of their ids: over n turns in a row each of n agents once."""
    fleet = candidates(records)
    return fleet[turn % len(fleet)] if fleet else None


def least_busy(records: Iterable[AgentRecord], *, chance: float) -> AgentRecord | None:
    """The lowest share of slots in use, then the lowest latency, then by chance."""
    fleet = candidates(records)
    if not fleet:
        return None
    least = min(map(busyness, fleet))
    equals = [record for record in fleet if busyness(record) == least]
    return equals[int(chance * len(equals))]


def load_balanced(
    records: Iterable[AgentRecord], *, chance: float, weights: Weights = LOAD_BALANCED
) -> AgentRecord | None:
    """Drawn by chance, each agent in proportion to its score (`scoring`).

    Drawn and not the best: what the registry says is up to a heartbeat old, and all who read it at the same
    time would send to the same one. See M. Mitzenmacher, How Useful Is Old Information? (2000).
    """
    fleet = candidates(records)
    if not fleet:
        return None
    scale = Scale.of(fleet)
    sums = list(accumulate(score(record, weights, scale) for record in fleet))
    mark = chance * sums[-1]
    return next((record for record, end in zip(fleet, sums, strict=True) if mark < end), fleet[-1])


def best_match(
    records: Iterable[AgentRecord], wanted: Wanted, *, chance: float, weights: Weights = BEST_MATCH
) -> AgentRecord | None:
    """The highest score (`scoring`), which is mostly the share of the wanted that it has; equals by chance."""
    fleet = candidates(records)
    if not fleet:
        return None
    scale = Scale.of(fleet)
    scores = [score(record, weights, scale, wanted) for record in fleet]
    equals = [record for record, points in zip(fleet, scores, strict=True) if points == max(scores)]
    return equals[int(chance * len(equals))]


def busyness(record: AgentRecord) -> tuple[float, float]:
    """The share of its slots in use, then its latency; less is better."""
    return record.load.running / max(1, record.registration.slots), record.load.latency_ms


def candidates(records: Iterable[AgentRecord]) -> Sequence[AgentRecord]:
    """Living and taking work, by id; those that still start only when there is nobody else."""
    living = sorted((record for record in records if record.lease_ms > 0), key=lambda record: record.agent_id)
    ready = [record for record in living if record.load.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
    return ready or [record for record in living if record.load.status is AgentStatus.STARTING]
