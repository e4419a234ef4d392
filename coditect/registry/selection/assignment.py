"""The assignment of many tasks to agents at once, from one read of the registry, as a pure function.

An agent gets at most what it can take: its slots and as many tasks again may run and wait in it (its inbox holds twice
its slots). Tasks beyond that stay in the capability's queue, where any free agent takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from heapq import heapify, heappop, heappush
from typing import assert_never

from coditect.model.ids import AgentId
from coditect.model.recent import TaskKind
from coditect.model.registration import AgentRecord
from coditect.model.strategy import ANYTHING, Strategy, Wanted
from coditect.registry.selection.expectation import expectations, explored
from coditect.registry.selection.scoring import BEST_MATCH, LOAD_BALANCED, Scale, score
from coditect.registry.selection.strategies import busyness, candidates

INBOX_SLOTS = 2
"""The capacity of an agent's inbox, as a multiple of the agent's slots: `broker.topology.agent_queues`."""

_Rank = Callable[[AgentRecord, int], tuple[float, ...]]
"""A function that ranks an agent with its count of newly assigned tasks; the lowest rank gets the next task."""


def assign(
    records: Iterable[AgentRecord],
    count: int,
    strategy: Strategy,
    kind: TaskKind,
    *,
    turn: int = 0,
    wanted: Wanted = ANYTHING,
) -> tuple[AgentId | None, ...]:
    """Return the agent for each of `count` tasks of one kind, in order; None leaves a task to the capability's queue.

    Every prefix of the answer is spread as the whole: `round_robin` evenly, `least_busy` by filling the emptiest agent
    by share of slots, `load_balanced` in proportion to the score, `best_match` to the best agent as long as it stays
    the best with its new tasks, `adaptive` to the agent that is expected to complete the task first, beside its new
    tasks. Among equals the agent at `turn` is first.
    """
    fleet = candidates(records)
    rank = _rank_of(strategy, fleet, wanted, partial(_by_expectation, fleet, kind, turn))
    waiting = [
        (rank(record, 0), (place - turn) % len(fleet), 0, record)
        for place, record in enumerate(fleet)
        if room(record) > 0
    ]
    heapify(waiting)  # no two agents have the same place, so records are never compared
    chosen: list[AgentId | None] = []
    while waiting and len(chosen) < count:
        _, place, given, record = heappop(waiting)
        chosen.append(record.agent_id)
        given += 1
        if given < room(record):
            heappush(waiting, (rank(record, given), place, given, record))
    return (*chosen, *[None] * (count - len(chosen)))


def room(record: AgentRecord) -> int:
    """Return how many more tasks an agent can take, in its slots and in its inbox together."""
    return max(0, INBOX_SLOTS * record.registration.slots - record.load.running - record.load.suspended)


def with_more(record: AgentRecord, given: int) -> AgentRecord:
    """Return an agent's record with its running tasks increased by `given`."""
    return replace(record, load=replace(record.load, running=record.load.running + given))


def _rank_of(
    strategy: Strategy, fleet: Sequence[AgentRecord], wanted: Wanted, by_expectation: Callable[[], _Rank]
) -> _Rank:
    scale = Scale.of(fleet)
    match strategy:
        case Strategy.ROUND_ROBIN:
            return lambda record, given: (given,)
        case Strategy.LEAST_BUSY:
            return lambda record, given: busyness(with_more(record, given))
        case Strategy.LOAD_BALANCED:
            # Sainte-Laguë: the counts are the nearest whole numbers to the shares.
            points = {record.agent_id: score(record, LOAD_BALANCED, scale) for record in fleet}
            return lambda record, given: ((2 * given + 1) / points[record.agent_id],)
        case Strategy.BEST_MATCH:
            return lambda record, given: (-score(with_more(record, given), BEST_MATCH, scale, wanted),)
        case Strategy.ADAPTIVE:
            return by_expectation()
        case _:
            assert_never(strategy)


def _by_expectation(fleet: Sequence[AgentRecord], kind: TaskKind, turn: int) -> _Rank:
    tried = explored(fleet, turn)
    expected = {record.agent_id: one for record, one in zip(fleet, expectations(fleet, kind), strict=True)}

    def rank(record: AgentRecord, given: int) -> tuple[float, ...]:
        if record is tried and not given:
            return (-1.0,)
        more = with_more(record, given)
        return (expected[record.agent_id].among_others_ms(more), *busyness(more))

    return rank
