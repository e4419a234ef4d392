"""Which of several agents gets a task, when the sender picks one. Pure: turn and chance are passed in.

A pick is a preference: an agent that does not take the task leaves it to its capability's queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import assert_never

from coditect.model.registration import AgentRecord, AgentStatus


class Strategy(StrEnum):
    """How the sender picks."""

    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"


def choose(records: Iterable[AgentRecord], strategy: Strategy, *, turn: int, chance: float) -> AgentRecord | None:
    """The agent for the next task; None when no agent may be chosen.

    `turn` grows by one with each choice (`Registry.next_turn`), `chance` is in [0, 1).
    """
    match strategy:
        case Strategy.ROUND_ROBIN:
            return round_robin(records, turn=turn)
        case Strategy.LEAST_BUSY:
            return least_busy(records, chance=chance)
        case _:
            assert_never(strategy)


def round_robin(records: Iterable[AgentRecord], *, turn: int) -> AgentRecord | None:
    """Each agent in its turn, in the order of their ids: over n turns in a row each of n agents once."""
    candidates = _candidates(records)
    return candidates[turn % len(candidates)] if candidates else None


def least_busy(records: Iterable[AgentRecord], *, chance: float) -> AgentRecord | None:
    """The lowest share of slots in use, then the lowest latency, then by chance."""
    candidates = _candidates(records)
    if not candidates:
        return None
    least = min(map(_busyness, candidates))
    equals = [record for record in candidates if _busyness(record) == least]
    return equals[int(chance * len(equals))]


def _busyness(record: AgentRecord) -> tuple[float, float]:
    return record.load.running / max(1, record.registration.slots), record.load.latency_ms


def _candidates(records: Iterable[AgentRecord]) -> Sequence[AgentRecord]:
    """Living and taking work; those that still start only when there is nobody else."""
    living = sorted((record for record in records if record.lease_ms > 0), key=lambda record: record.agent_id)
    ready = [record for record in living if record.load.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
    return ready or [record for record in living if record.load.status is AgentStatus.STARTING]
