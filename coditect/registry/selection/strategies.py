"""The strategies by which a sender chooses one of several agents, as pure functions.

A choice is a preference: an agent that does not take the task leaves it to its capability's queue. `assignment` gives
out many tasks at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import assert_never

from coditect.model.recent import TaskKind
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.strategy import ANYTHING, Strategy, Wanted
from coditect.registry.selection.expectation import expectations, explored
from coditect.registry.selection.scoring import BEST_MATCH, LOAD_BALANCED, Scale, Weights, score


def choose(
    records: Iterable[AgentRecord],
    strategy: Strategy,
    kind: TaskKind,
    *,
    turn: int,
    chance: float,
    wanted: Wanted = ANYTHING,
) -> AgentRecord | None:
    """Choose the agent for the next task, of the given kind, by a strategy; None when no agent takes work.

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
        case Strategy.ADAPTIVE:
            return adaptive(records, kind, turn=turn, chance=chance)
        case _:
            assert_never(strategy)


def round_robin(records: Iterable[AgentRecord], *, turn: int) -> AgentRecord | None:
    """Choose the agent at index `turn`, modulo their number, among the agents that take work, sorted by id."""
    fleet = candidates(records)
    return fleet[turn % len(fleet)] if fleet else None


def least_busy(records: Iterable[AgentRecord], *, chance: float) -> AgentRecord | None:
    """Choose the agent with the lowest share of used slots, then the lowest latency, then by chance."""
    fleet = candidates(records)
    if not fleet:
        return None
    return _one_of_the_lowest(fleet, list(map(busyness, fleet)), chance)


def load_balanced(
    records: Iterable[AgentRecord], *, chance: float, weights: Weights = LOAD_BALANCED
) -> AgentRecord | None:
    """Choose an agent at random, with a probability in proportion to the agent's score (`scoring`).

    At random, and not the best: the registry's facts are up to a heartbeat old, and all clients that read them at one
    time would send to one agent. See M. Mitzenmacher, How Useful Is Old Information? (2000).
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
    """Choose the agent with the highest score; its share of the wanted tags, capabilities and keywords counts most."""
    fleet = candidates(records)
    if not fleet:
        return None
    scale = Scale.of(fleet)
    return _one_of_the_lowest(fleet, [(-score(record, weights, scale, wanted),) for record in fleet], chance)


def adaptive(records: Iterable[AgentRecord], kind: TaskKind, *, turn: int, chance: float) -> AgentRecord | None:
    """Choose the agent that is expected to complete the task first; at one choice in 20, try the agents in turn."""
    fleet = candidates(records)
    if not fleet:
        return None
    if (tried := explored(fleet, turn)) is not None:
        return tried
    ranks = [
        (one.among_others_ms(record), *busyness(record))
        for record, one in zip(fleet, expectations(fleet, kind), strict=True)
    ]
    return _one_of_the_lowest(fleet, ranks, chance)


def busyness(record: AgentRecord) -> tuple[float, float]:
    """Return the share of an agent's slots that are in use, and its latency in ms; lower is better."""
    return record.load.running / max(1, record.registration.slots), record.load.latency_ms


def _one_of_the_lowest(fleet: Sequence[AgentRecord], ranks: Sequence[tuple[float, ...]], chance: float) -> AgentRecord:
    """Return an agent with the lowest rank, by chance where several have it."""
    lowest = min(ranks)
    equals = [record for record, rank in zip(fleet, ranks, strict=True) if rank == lowest]
    return equals[int(chance * len(equals))]


def candidates(records: Iterable[AgentRecord]) -> Sequence[AgentRecord]:
    """Return the living agents that take work, sorted by id; starting agents only when there is no other."""
    living = sorted((record for record in records if record.lease_ms > 0), key=lambda record: record.agent_id)
    ready = [record for record in living if record.load.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
    return ready or [record for record in living if record.load.status is AgentStatus.STARTING]
