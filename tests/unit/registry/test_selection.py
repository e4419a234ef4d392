from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.selection import Strategy, choose, least_busy, round_robin
from tests.unit.registry.samples import make_record

UNAVAILABLE = (AgentStatus.DRAINING, AgentStatus.OFFLINE)

records_of_any_kind = st.lists(
    st.builds(
        make_record,
        st.text(alphabet="abc", min_size=1, max_size=3).map("agent-{}".format),
        status=st.sampled_from(AgentStatus),
        slots=st.integers(0, 8),
        running=st.integers(0, 12),
        latency_ms=st.sampled_from([0.0, 1.5, 20.0]),
        lease_ms=st.sampled_from([0, 1, 3_000]),
    ),
    max_size=8,
    unique_by=lambda record: record.agent_id,
)
chances = st.floats(0, 1, exclude_max=True)


@given(records_of_any_kind, st.sampled_from(Strategy), st.integers(0, 1 << 62), chances)
def test_only_a_living_agent_that_takes_work_is_chosen(
    records: list[AgentRecord], strategy: Strategy, turn: int, chance: float
) -> None:
    allowed = [record for record in records if record.lease_ms and record.load.status not in UNAVAILABLE]

    chosen = choose(records, strategy, turn=turn, chance=chance)

    assert (chosen is None) == (not allowed)
    assert chosen is None or chosen in allowed


@given(records_of_any_kind, st.sampled_from(Strategy), st.integers(0, 1 << 62), chances, st.randoms())
def test_choice_does_not_depend_on_the_order_of_the_records(
    records: list[AgentRecord], strategy: Strategy, turn: int, chance: float, order: random.Random
) -> None:
    shuffled = order.sample(records, len(records))

    assert choose(records, strategy, turn=turn, chance=chance) == choose(shuffled, strategy, turn=turn, chance=chance)


def test_round_robin_gives_each_agent_the_same_share() -> None:
    records = [make_record(name) for name in ("a", "b", "c")]

    chosen = Counter(pick(round_robin(records, turn=turn)) for turn in range(17, 317))

    assert chosen == {"a": 100, "b": 100, "c": 100}


def test_round_robin_takes_no_agent_twice_before_all_had_their_turn() -> None:
    records = [make_record(name) for name in ("c", "a", "b")]

    chosen = [pick(round_robin(records, turn=turn)) for turn in range(6)]

    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_least_busy_takes_the_lowest_share_of_slots_not_the_lowest_count() -> None:
    records = [make_record("small", slots=2, running=1), make_record("large", slots=10, running=3)]

    assert pick(least_busy(records, chance=0)) == "large"


def test_least_busy_takes_the_faster_of_two_equally_busy() -> None:
    records = [make_record("slow", latency_ms=80), make_record("quick", latency_ms=20)]

    assert pick(least_busy(records, chance=0.99)) == "quick"


def test_least_busy_divides_ties_evenly_by_chance() -> None:
    records = [make_record(name) for name in ("a", "b", "c", "d")]
    chance = random.Random(7)

    chosen = Counter(pick(least_busy(records, chance=chance.random())) for _ in range(4_000))

    assert set(chosen) == {"a", "b", "c", "d"}
    assert all(900 < count < 1_100 for count in chosen.values())


def test_least_busy_fills_agents_in_proportion_to_their_slots() -> None:
    records = {name: make_record(name, slots=slots) for name, slots in (("a", 2), ("b", 4), ("c", 6))}
    chance = random.Random(7)

    for _ in range(60):
        name = pick(least_busy(records.values(), chance=chance.random()))
        load = records[name].load
        records[name] = replace(records[name], load=replace(load, running=load.running + 1))

    assert {name: record.load.running for name, record in records.items()} == {"a": 10, "b": 20, "c": 30}


def test_agent_that_still_starts_is_chosen_only_when_nobody_else_is_there() -> None:
    starting = make_record("a", status=AgentStatus.STARTING)
    busy = make_record("b", status=AgentStatus.BUSY, running=4)

    assert pick(least_busy([starting, busy], chance=0)) == "b"
    assert pick(least_busy([starting], chance=0)) == "a"


@pytest.mark.parametrize("strategy", Strategy)
def test_nobody_is_chosen_from_none(strategy: Strategy) -> None:
    assert choose([], strategy, turn=0, chance=0.5) is None


def pick(record: AgentRecord | None) -> str:
    assert record is not None
    return record.agent_id
