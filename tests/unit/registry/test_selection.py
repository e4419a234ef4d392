from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError
from coditect.model.capability import ANYTHING, Strategy, Wanted
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry import scoring
from coditect.registry.scoring import choose
from tests.unit.registry.fleets import KIND, SimulatedFleet, chances, records_of_any_kind, some_wanted
from tests.unit.registry.samples import make_record

UNAVAILABLE = (AgentStatus.DRAINING, AgentStatus.OFFLINE)


def pick(
    records: Iterable[AgentRecord], strategy: Strategy, *, turn: int = 0, chance: float = 0, wanted: Wanted = ANYTHING
) -> str:
    record = choose(records, strategy, KIND, turn=turn, chance=chance, wanted=wanted)
    assert record is not None
    return record.agent_id


@given(records_of_any_kind, st.sampled_from(Strategy), st.integers(0, 1 << 62), chances)
def test_only_a_living_agent_that_takes_work_is_chosen(
    records: list[AgentRecord], strategy: Strategy, turn: int, chance: float
) -> None:
    allowed = [record for record in records if record.lease_ms and record.load.status not in UNAVAILABLE]

    chosen = choose(records, strategy, KIND, turn=turn, chance=chance)

    assert (chosen is None) == (not allowed)
    assert chosen is None or chosen in allowed


@given(records_of_any_kind, st.sampled_from(Strategy), st.integers(0, 1 << 62), chances, some_wanted, st.randoms())
def test_choice_does_not_depend_on_the_order_of_the_records(
    records: list[AgentRecord], strategy: Strategy, turn: int, chance: float, wanted: Wanted, order: random.Random
) -> None:
    shuffled = order.sample(records, len(records))

    one = choose(records, strategy, KIND, turn=turn, chance=chance, wanted=wanted)
    assert one == choose(shuffled, strategy, KIND, turn=turn, chance=chance, wanted=wanted)


def test_round_robin_takes_no_agent_twice_before_all_had_their_turn() -> None:
    records = [make_record(name) for name in ("c", "a", "b")]

    chosen = [pick(records, Strategy.ROUND_ROBIN, turn=turn) for turn in range(6)]

    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_least_busy_takes_the_faster_of_two_equally_busy_and_one_that_starts_only_alone() -> None:
    records = [make_record("slow", latency_ms=80), make_record("quick", latency_ms=20)]

    assert pick(records, Strategy.LEAST_BUSY, chance=0.99) == "quick"

    starting = make_record("a", status=AgentStatus.STARTING)
    busy = make_record("b", status=AgentStatus.BUSY, running=4)

    assert pick([starting, busy], Strategy.LEAST_BUSY, chance=0) == "b"
    assert pick([starting], Strategy.LEAST_BUSY, chance=0) == "a"


def test_least_busy_divides_ties_evenly_by_chance() -> None:
    records = [make_record(name) for name in ("a", "b", "c", "d")]
    chance = random.Random(7)

    chosen = Counter(pick(records, Strategy.LEAST_BUSY, chance=chance.random()) for _ in range(4_000))

    assert set(chosen) == {"a", "b", "c", "d"}
    assert all(900 < count < 1_100 for count in chosen.values())


def test_least_busy_fills_agents_in_proportion_to_their_slots() -> None:
    records = {name: make_record(name, slots=slots) for name, slots in (("a", 2), ("b", 4), ("c", 6))}
    chance = random.Random(7)

    for _ in range(60):
        name = pick(records.values(), Strategy.LEAST_BUSY, chance=chance.random())
        load = records[name].load
        records[name] = replace(records[name], load=replace(load, running=load.running + 1))

    assert {name: record.load.running for name, record in records.items()} == {"a": 10, "b": 20, "c": 30}


@given(records_of_any_kind, chances)
def test_least_busy_never_picks_one_that_is_busier_than_another(records: list[AgentRecord], chance: float) -> None:
    allowed = [one for one in records if one.lease_ms and one.load.status in (AgentStatus.IDLE, AgentStatus.BUSY)]

    chosen = choose(records, Strategy.LEAST_BUSY, KIND, turn=0, chance=chance)

    shares = [one.load.running / max(1, one.registration.slots) for one in allowed]
    if allowed:
        assert chosen is not None
        assert chosen.load.running / max(1, chosen.registration.slots) == min(shares)


@pytest.mark.parametrize("arrivals", [1, 2, 4])
def test_load_balanced_spreads_in_proportion_to_slots_when_all_else_is_the_same(arrivals: int) -> None:
    records = {name: make_record(name, slots=slots) for name, slots in (("a", 4), ("b", 8), ("c", 16))}
    chance = random.Random(7)

    fleet = SimulatedFleet(records, steps={"a": 4, "b": 4, "c": 4}, beat=5)
    taken = fleet.run(
        lambda told: choose(told, Strategy.LOAD_BALANCED, KIND, turn=0, chance=chance.random()),
        steps=1_000,
        arrivals=arrivals,
    )

    assert taken.total() == 1_000 * arrivals
    for name, share in (("a", 1 / 7), ("b", 2 / 7), ("c", 4 / 7)):
        assert taken[name] / taken.total() == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize(
    "trouble",
    [
        {"cpu_percent": 100.0},
        {"resident_bytes": 64 * 1024**3},
        {"failed_attempts": 500},
        {"latency_ms": 5_000.0},
        {"running": 7},
        {"suspended": 12},
    ],
    ids=str,
)
def test_load_balanced_avoids_an_agent_in_trouble_but_does_not_forget_it(trouble: dict[str, Any]) -> None:
    good: dict[str, Any] = {"slots": 8, "latency_ms": 20.0, "completed": 100}
    records = [make_record(name, **{**good, **(trouble if name == "a" else {})}) for name in ("a", "b", "c")]
    chance = random.Random(7)

    taken = Counter(pick(records, Strategy.LOAD_BALANCED, chance=chance.random()) for _ in range(6_000))

    assert 0 < taken["a"] < 0.6 * min(taken["b"], taken["c"])
    assert taken["b"] == pytest.approx(taken["c"], rel=0.1)


def test_load_balanced_learns_from_what_comes_back_who_is_slow_and_who_fails() -> None:
    records = {name: make_record(name, slots=8) for name in ("good", "slow", "sick")}
    chance = random.Random(7)

    fleet = SimulatedFleet(records, steps={"good": 2, "slow": 12, "sick": 2}, failing={"sick": 0.8})
    taken = fleet.run(
        lambda told: choose(told, Strategy.LOAD_BALANCED, KIND, turn=0, chance=chance.random()), steps=1_000, arrivals=2
    )

    assert taken["good"] > 3 * taken["slow"]
    assert taken["good"] > 3 * taken["sick"]


def test_load_balanced_draws_by_slots_when_nobody_has_a_free_one() -> None:
    records = [make_record("a", slots=2, running=2), make_record("b", slots=6, running=6)]
    chance = random.Random(7)

    taken = Counter(pick(records, Strategy.LOAD_BALANCED, chance=chance.random()) for _ in range(4_000))

    assert taken["b"] / taken["a"] == pytest.approx(3, rel=0.15)


@given(st.permutations(["gpu", "zone", "eu"]), st.integers(0, 3), st.integers(0, 3), chances)
def test_best_match_takes_who_has_more_of_what_is_wanted(tags: list[str], one: int, other: int, chance: float) -> None:
    records = [make_record("one", tags=frozenset(tags[:one])), make_record("other", tags=frozenset(tags[:other]))]

    chosen = pick(records, Strategy.BEST_MATCH, wanted=Wanted(tags=set(tags)), chance=chance)

    assert one == other or chosen == ("one" if one > other else "other")


def test_best_match_counts_all_that_is_wanted_alike_and_prefers_a_free_half_match() -> None:
    wanted = Wanted(tags={"gpu"}, capabilities={"code.review"}, keywords={"MISTAKES"})

    assert scoring.overlap(make_record("a", tags=frozenset({"gpu"})).registration, wanted) == 1
    assert scoring.overlap(make_record("a", tags=frozenset()).registration, wanted) == pytest.approx(2 / 3)

    two_tags = Wanted(tags={"gpu", "eu"})
    half = make_record("half", tags=frozenset({"eu"}))

    for running, best in ((4, "half"), (3, "x")):
        whole = make_record("x", running=running, tags=wanted_tags(two_tags))
        assert pick([whole, half], Strategy.BEST_MATCH, wanted=two_tags) == best


@pytest.mark.parametrize("status", UNAVAILABLE)
def test_best_match_never_takes_one_that_takes_no_work(status: AgentStatus) -> None:
    wanted = Wanted(tags={"gpu"})
    perfect = make_record("perfect", status=status, tags=frozenset({"gpu"}))
    dead = make_record("dead", lease_ms=0, tags=frozenset({"gpu"}))

    assert pick([perfect, dead, make_record("other")], Strategy.BEST_MATCH, wanted=wanted) == "other"
    assert choose([perfect, dead], Strategy.BEST_MATCH, KIND, turn=0, chance=0, wanted=wanted) is None


@given(records_of_any_kind, some_wanted)
def test_terms_and_scores_are_normalised(records: list[AgentRecord], wanted: Wanted) -> None:
    scale = scoring.Scale.of(records)

    for record in records:
        terms = scoring.terms_of(record, scale, wanted)
        assert list(terms) == list(get_args(scoring.Term))
        assert all(0 <= term <= 1 for term in terms.values())
        for weights in (scoring.LOAD_BALANCED, scoring.BEST_MATCH):
            assert 0 < scoring.score(record, weights, scale, wanted) <= 1


@given(records_of_any_kind, st.sampled_from(get_args(scoring.Term)))
def test_a_weight_of_nothing_leaves_its_term_out(records: list[AgentRecord], name: scoring.Term) -> None:
    scale = scoring.Scale.of(records)

    for record in records:
        term = scoring.terms_of(record, scale)[name]
        assert scoring.score(record, {}, scale) == 1
        assert scoring.score(record, {name: 1.0}, scale) == pytest.approx(scoring.FLOOR + (1 - scoring.FLOOR) * term)


def test_wanted_is_a_set_of_texts() -> None:
    with pytest.raises(InputError):
        Wanted(tags="gpu")


def wanted_tags(wanted: Wanted) -> frozenset[str]:
    return frozenset(wanted.tags)
