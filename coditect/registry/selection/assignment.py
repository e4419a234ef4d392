"""The assignment of many tasks to agents at once, from one read of the registry, as a pure function.

An agent gets at most what it can take: its slots and as many tasks again may run and wait in it (its inbox holds twice
its slots). Tasks beyond that stay in the capability's queue, where any free agent takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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
    """Return the agent for each of `count` similar tasks, in order; None for a task that any free agent may take.

    Every prefix of the answer is spread as the whole: `round_robin` evenly, `least_busy` by filling the emptiest agent
    by share of slots, `load_balanced` in proportion to the score, `best_match` to the best agent as long as it stays
    the best with its new tasks, `adaptive` to the agent that is expected to complete the task first, beside its new
    tasks. Among equals the agent at `turn` is first.
    """
    fleet = candidates(records)
    rank = _rank_of(strategy, fleet, wanted, kind)
    places = {record.agent_id: (place - turn) % len(fleet) for place, record in enumerate(fleet)}
    given = dict.fromkeys(places, 0)
    waiting = [(rank(record, 0), places[record.agent_id], 0, record) for record in fleet if room(record) > 0]
    heapify(waiting)  # no two agents have the same place, and none the same count twice: records are never compared
    chosen: list[AgentId | None] = []
    while waiting and len(chosen) < count:
        record = explored(fleet, turn + len(chosen)) if strategy is Strategy.ADAPTIVE else None
        if record is None or given[record.agent_id] >= room(record):
            _, _, counted, record = heappop(waiting)
            if counted < given[record.agent_id]:
                continue  # the agent got a task to try meanwhile, and waits with its new count
        agent_id = record.agent_id
        chosen.append(agent_id)
        given[agent_id] += 1
        if given[agent_id] < room(record):
            heappush(waiting, (rank(record, given[agent_id]), places[agent_id], given[agent_id], record))
    return (*chosen, *[None] * (count - len(chosen)))


def room(record: AgentRecord) -> int:
    """Return how many more tasks an agent may get: twice its slots, less its tasks that run or wait without a slot."""
    return max(0, INBOX_SLOTS * record.registration.slots - record.load.running - record.load.suspended)


def with_more(record: AgentRecord, given: int) -> AgentRecord:
    """Return a copy of an agent's record in which `given` more tasks run."""
    return replace(record, load=replace(record.load, running=record.load.running + given))


def _rank_of(strategy: Strategy, fleet: Sequence[AgentRecord], wanted: Wanted, kind: TaskKind) -> _Rank:
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
            return _by_expectation(fleet, kind)
        case _:
            assert_never(strategy)


def _by_expectation(fleet: Sequence[AgentRecord], kind: TaskKind) -> _Rank:
    expected = {record.agent_id: one for record, one in zip(fleet, expectations(fleet, kind), strict=True)}

    def rank(record: AgentRecord, given: int) -> tuple[float, ...]:
        more = with_more(record, given)
        return (expected[record.agent_id].among_others_ms(more), *busyness(more))

    return rank
