"""The rules by which a sender chooses agents, as pure functions: scores, expected times, strategies, assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import accumulate
from math import prod
from typing import Literal, Self, TypeAlias, assert_never

from coditect.model.capability import ANYTHING, Strategy, Wanted
from coditect.model.ids import AgentId
from coditect.model.prediction import RecentOutcomes, TaskKind, predict, unknown
from coditect.model.registration import AgentRecord, AgentStatus, Registration
from coditect.registry.port import texts_of

# The score of an agent for the next task, as one number in (0, 1], by a pure function.
#
# ::
#
#     score = free^w1 · capacity^w2 · cpu^w3 · memory^w4 · health^w5 · latency^w6 · overlap^w7
#
#     free      1 - (running + suspended / 2) / slots          the share of its slots that is left
#     capacity  free slots / those of the agent that has most  slots / most slots when all slots are in use
#     cpu       1 - cpu_percent / 100                          of one core
#     memory    1 GiB / (1 GiB + resident_bytes)               half at 1 GiB
#     health    (completed + 10) / (completed + failed attempts + 10)   1 for a new agent
#     latency   (fastest + 10 ms) / (latency_ms + 10 ms)       1 for the fastest agent, and for a new one
#     overlap   criteria that it meets / all criteria          1 without criteria
#
# Each term is mapped from [0, 1] to [FLOOR, 1], so that no term is a veto: when all agents are equally full the other
# terms decide, and an agent that recovered is noticed by the little work that it still gets. The score is a product,
# because an agent that is bad at one thing is not made good by the others. A weight of 0 leaves a term out.

FLOOR = 0.02
SUSPENDED_SHARE = 0.5
"""The share of a slot that a suspended task counts for: it holds none now, but takes the next free one."""
MEMORY_BYTES = 1024**3
TRUSTED_SUCCESSES = 10
LATENCY_MS = 10.0
"""The milliseconds added to each latency in the score, so that smaller differences hardly count."""


Term: TypeAlias = Literal["free", "capacity", "cpu", "memory", "health", "latency", "overlap"]
"""A term of an agent's score, in [0, 1]; more is better."""
Weights: TypeAlias = Mapping[Term, float]
"""The weight of each term that counts in a score: an exponent above 0."""
LOAD_BALANCED: Weights = {
    "free": 0.5, "capacity": 1.0, "cpu": 0.5, "memory": 0.25, "health": 2.0, "latency": 1.0,
}  # fmt: skip
BEST_MATCH: Weights = {"free": 0.5, "capacity": 0.25, "health": 1.0, "overlap": 3.0}


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
            fastest_ms=min((record.load.latency_ms for record in records if record.load.latency_ms > 0), default=0.0),
        )


def score(record: AgentRecord, weights: Weights, scale: Scale, wanted: Wanted = ANYTHING) -> float:
    """Return the score of an agent for the next task, in (0, 1]: the weighted product of the score's terms."""
    terms = terms_of(record, scale, wanted)
    return float(prod((FLOOR + (1 - FLOOR) * terms[term]) ** weight for term, weight in weights.items()))


def terms_of(record: AgentRecord, scale: Scale, wanted: Wanted = ANYTHING) -> dict[Term, float]:
    """Return the seven terms of an agent's score, scaled by the best values in the fleet."""
    load, slots, room = record.load, record.registration.slots, _room(record)
    capacity = room / scale.most_room if scale.most_room > 0 else slots / max(1, scale.most_slots)
    seen = load.completed + TRUSTED_SUCCESSES
    quick = scale.fastest_ms + LATENCY_MS
    return {
        "free": _bounded(room / max(1, slots)),
        "capacity": _bounded(capacity),
        "cpu": _bounded(1 - load.cpu_percent / 100),
        "memory": _bounded(MEMORY_BYTES / (MEMORY_BYTES + max(0, load.resident_bytes))),
        "health": _bounded(seen / (seen + max(0, load.failed_attempts))),
        "latency": _bounded(quick / (load.latency_ms + LATENCY_MS)) if load.latency_ms > 0 else 1.0,
        "overlap": overlap(record.registration, wanted),
    }


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


# The expected completion time of a task at each agent, by how the agents' recent tasks of its kind went.
#
# ::
#
#     expected = (run time + failures · (1 s + usual run time)) · (1 + running / slots)
#
#     run time          the mean of the agent's recent attempts at this kind of task
#     failures          the share of them that failed: the task then waits for its retry, and runs once more elsewhere
#     usual run time    the mean of the agent that is fastest at this kind of task
#     running / slots   how busy the agent is, with the tasks that the sender has given to it since
#
# Both are drawn to the usual (its run time, no failure) as by one attempt more, so an agent without recent attempts is
# expected to be as good as the best, and is tried soon. A bad agent is tried at times, since it may have recovered: one
# choice of `EXPLORE_EVERY` goes to the agents in turn, whatever is expected of them.
#
# The strategy `predictive` puts into the same formula what `coditect.model.prediction` expects of the task's input.

EXPLORE_EVERY = 20
"""One of this many choices tries out the agents in turn, so that at most 5 % of the tasks pay for what is learned."""
PREDICTIVE_EXPLORE_EVERY = 40
"""The same for choices by features: one attempt teaches something about the inputs of other kinds, too."""
FAILURE_COST_MS = 1000.0
"""The milliseconds that a failed attempt costs beside its run: the longest first delay of the default retry policy."""


@dataclass(frozen=True, slots=True)
class ExpectedRun:
    """The expected run time and success of an attempt at a task, at one agent that runs nothing else."""

    ran_ms: float
    """The expected run time of one attempt in milliseconds."""
    success: float
    """The expected share of attempts that complete, in (0, 1]."""
    usual_ms: float
    """The run time of the agent that is fastest at this kind of task, in milliseconds."""

    @property
    def alone_ms(self) -> float:
        """The expected milliseconds until an idle agent has done the task; a failed attempt adds a retry elsewhere."""
        return self.ran_ms + (1 - self.success) * (FAILURE_COST_MS + self.usual_ms)

    def among_others_ms(self, record: AgentRecord) -> float:
        """Return the expected milliseconds until the task is done beside the tasks that the agent already runs."""
        return self.alone_ms * (1 + record.load.running / max(1, record.registration.slots))


def expectations(fleet: Sequence[AgentRecord], kind: TaskKind) -> list[ExpectedRun]:
    """Return for each agent, in order, the expected run time and success of an attempt at a task of the kind.

    With features of the input, they are predicted by what each agent has learned of these, and an agent that has
    learned nothing yet is expected to be as good as the best.
    """
    if kind.features:
        known = [predict(record.load.learned, kind.capability, kind.features) for record in fleet]
        best_ms = min((run.ran_ms for run in known if run is not None), default=0.0)
        best = ExpectedRun(best_ms, 1.0, best_ms)
        return [best if run is None else ExpectedRun(run.ran_ms, run.success, best_ms) for run in known]
    recent = [_recent(record, kind) for record in fleet]
    usual_ms = min((outcomes.mean_ms for outcomes in recent if outcomes.attempts), default=0.0)
    return [_expected(outcomes, usual_ms) for outcomes in recent]


def explored(fleet: Sequence[AgentRecord], turn: int, kind: TaskKind) -> AgentRecord | None:
    """Return the next agent to try out, each in turn, at one choice of `EXPLORE_EVERY`, or of 40 by features."""
    number, turn_in_cycle = divmod(turn, PREDICTIVE_EXPLORE_EVERY if kind.features else EXPLORE_EVERY)
    return fleet[number % len(fleet)] if fleet and not turn_in_cycle else None


def _recent(record: AgentRecord, kind: TaskKind) -> RecentOutcomes:
    return next((outcomes for outcomes in record.load.recent if outcomes.kind == kind), unknown(kind))


def _expected(recent: RecentOutcomes, usual_ms: float) -> ExpectedRun:
    weight = recent.attempts + 1
    ran_ms = (recent.attempts * recent.mean_ms + usual_ms) / weight
    return ExpectedRun(ran_ms, (recent.attempts * recent.success + 1) / weight, usual_ms)


# The strategies by which a sender chooses one of several agents, as pure functions.
#
# A choice is a preference: an agent that does not take the task leaves it to its capability's queue. `assignment` gives
# out many tasks at once.


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

    `round_robin` takes the agents in turn, `load_balanced` draws one by its score, and the others take the one that
    `assign` gives the first task, by chance among equals; those that learn try the agents in turn at times.

    `turn` grows by one with each choice (`Registry.next_turn`), `chance` is in [0, 1).
    """
    fleet = candidates(records)
    if not fleet:
        return None
    if strategy is Strategy.ROUND_ROBIN:
        return fleet[turn % len(fleet)]
    if strategy is Strategy.LOAD_BALANCED:
        return _drawn(fleet, chance)
    if strategy in LEARNING and (tried := explored(fleet, turn, kind)) is not None:
        return tried
    rank = _rank_of(strategy, fleet, wanted, kind)
    return _one_of_the_lowest(fleet, [rank(record, 0) for record in fleet], chance)


def _drawn(fleet: Sequence[AgentRecord], chance: float) -> AgentRecord:
    """Return an agent at random, with a probability in proportion to the agent's score.

    At random, and not the best: the registry's facts are up to a heartbeat old, and all clients that read them at one
    time would send to one agent. See M. Mitzenmacher, How Useful Is Old Information? (2000).
    """
    scale = Scale.of(fleet)
    sums = list(accumulate(score(record, LOAD_BALANCED, scale) for record in fleet))
    mark = chance * sums[-1]
    return next((record for record, end in zip(fleet, sums, strict=True) if mark < end), fleet[-1])


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


# The assignment of many tasks to agents at once, from one read of the registry, as a pure function.
#
# An agent gets at most what it can take: its slots and as many tasks again may run and wait in it (its inbox holds
# twice its slots). Tasks beyond that stay in the capability's queue, where any free agent takes them.

INBOX_SLOTS = 2
"""The capacity of an agent's inbox, as a multiple of the agent's slots: `broker.topology.agent_queues`."""

LEARNING = (Strategy.ADAPTIVE, Strategy.PREDICTIVE)
"""The strategies that learn from outcomes, and so try out each agent at times."""

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
    the best with its new tasks, `adaptive` and `predictive` to the agent that is expected to complete the task
    first, beside its new tasks. Among equals the agent at `turn` is first.
    """
    fleet = candidates(records)
    rank = _rank_of(strategy, fleet, wanted, kind)
    places = {record.agent_id: (place - turn) % len(fleet) for place, record in enumerate(fleet)}
    assigned = dict.fromkeys(places, 0)
    waiting = [(rank(record, 0), places[record.agent_id], 0, record) for record in fleet if room(record) > 0]
    heapify(waiting)  # no two agents have the same place, and none the same count twice: records are never compared
    chosen: list[AgentId | None] = []
    while waiting and len(chosen) < count:
        record = explored(fleet, turn + len(chosen), kind) if strategy in LEARNING else None
        if record is None or assigned[record.agent_id] >= room(record):
            _, _, counted, record = heappop(waiting)
            if counted < assigned[record.agent_id]:
                continue  # the agent got a task to try meanwhile, and waits with its new count
        agent_id = record.agent_id
        chosen.append(agent_id)
        assigned[agent_id] += 1
        if assigned[agent_id] < room(record):
            heappush(waiting, (rank(record, assigned[agent_id]), places[agent_id], assigned[agent_id], record))
    return (*chosen, *[None] * (count - len(chosen)))


def room(record: AgentRecord) -> int:
    """Return how many more tasks an agent may get: twice its slots, less its tasks that run or wait without a slot."""
    return max(0, INBOX_SLOTS * record.registration.slots - record.load.running - record.load.suspended)


def with_more(record: AgentRecord, count: int) -> AgentRecord:
    """Return an agent's record with `count` more running tasks; the record itself for 0."""
    return record if not count else replace(record, load=replace(record.load, running=record.load.running + count))


def _rank_of(strategy: Strategy, fleet: Sequence[AgentRecord], wanted: Wanted, kind: TaskKind) -> _Rank:
    match strategy:
        case Strategy.ROUND_ROBIN:
            return lambda record, count: (count,)
        case Strategy.LEAST_BUSY:
            return lambda record, count: busyness(with_more(record, count))
        case Strategy.LOAD_BALANCED:
            # Sainte-Laguë: the counts are the nearest whole numbers to the shares.
            scale = Scale.of(fleet)
            points = {record.agent_id: score(record, LOAD_BALANCED, scale) for record in fleet}
            return lambda record, count: ((2 * count + 1) / points[record.agent_id],)
        case Strategy.BEST_MATCH:
            scale = Scale.of(fleet)
            return lambda record, count: (-score(with_more(record, count), BEST_MATCH, scale, wanted),)
        case Strategy.ADAPTIVE | Strategy.PREDICTIVE:
            return _by_expectation(fleet, kind)
        case _:
            assert_never(strategy)


def _by_expectation(fleet: Sequence[AgentRecord], kind: TaskKind) -> _Rank:
    expected = {record.agent_id: run for record, run in zip(fleet, expectations(fleet, kind), strict=True)}

    def rank(record: AgentRecord, count: int) -> tuple[float, ...]:
        more = with_more(record, count)
        return (expected[record.agent_id].among_others_ms(more), *busyness(more))

    return rank
