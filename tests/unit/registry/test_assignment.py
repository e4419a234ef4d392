from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coditect.broker.topology import agent_queues
from coditect.model.capability import Strategy, Wanted
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.scoring import INBOX_SLOTS, LOAD_BALANCED, Scale, assign, room, score
from tests.unit.registry.fleets import KIND, records_of_any_kind, some_wanted
from tests.unit.registry.samples import make_record

counts = st.integers(0, 60)
turns = st.integers(0, 1 << 62)
strategies = st.sampled_from(Strategy)


@given(records_of_any_kind, counts, strategies, turns, some_wanted)
def test_every_task_is_given_out_and_nobody_gets_more_than_it_can_take(
    records: list[AgentRecord], count: int, strategy: Strategy, turn: int, wanted: Wanted
) -> None:
    given_out = assign(records, count, strategy, KIND, turn=turn, wanted=wanted)

    taken = Counter(given_out)
    rooms = {record.agent_id: room(record) for record in records if takes_work(record, records)}
    assert len(given_out) == count
    assert all(taken[agent] <= rooms[agent] for agent in taken if agent is not None)
    assert taken[None] == max(0, count - sum(rooms.values()))


@given(records_of_any_kind, counts, strategies, turns, some_wanted, st.randoms())
def test_assignment_does_not_depend_on_the_order_of_the_records(
    records: list[AgentRecord], count: int, strategy: Strategy, turn: int, wanted: Wanted, order: random.Random
) -> None:
    shuffled = order.sample(records, len(records))

    one = assign(records, count, strategy, KIND, turn=turn, wanted=wanted)
    assert one == assign(shuffled, count, strategy, KIND, turn=turn, wanted=wanted)


@given(records_of_any_kind, counts, counts, strategies, turns)
def test_the_beginning_of_an_assignment_is_the_assignment_of_fewer(
    records: list[AgentRecord], count: int, fewer: int, strategy: Strategy, turn: int
) -> None:
    whole = assign(records, count + fewer, strategy, KIND, turn=turn)

    assert whole[:fewer] == assign(records, fewer, strategy, KIND, turn=turn)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), counts, turns)
def test_round_robin_gives_everybody_the_same_but_one_until_somebody_is_full(
    slots: list[int], count: int, turn: int
) -> None:
    records = [make_record(f"a{n}", slots=many) for n, many in enumerate(slots)]

    taken = Counter(assign(records, count, Strategy.ROUND_ROBIN, KIND, turn=turn))

    not_full = [taken[one.agent_id] for one in records if taken[one.agent_id] < room(one)]
    assert not not_full or max(taken[one.agent_id] for one in records) - min(not_full) <= 1


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6), counts)
def test_least_busy_fills_up_the_emptiest(slots_and_running: list[tuple[int, int]], count: int) -> None:
    records = [make_record(f"a{n}", slots=s, running=min(r, s)) for n, (s, r) in enumerate(slots_and_running)]

    taken = Counter(assign(records, count, Strategy.LEAST_BUSY, KIND))

    before_the_last = [
        (one.load.running + taken[one.agent_id] - 1) / one.registration.slots for one in records if taken[one.agent_id]
    ]
    after = [
        (one.load.running + taken[one.agent_id]) / one.registration.slots
        for one in records
        if taken[one.agent_id] < room(one)
    ]
    assert not before_the_last or not after or max(before_the_last) <= min(after)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_least_busy_gives_an_idle_fleet_by_its_slots(slots: list[int], percent: int) -> None:
    records = [make_record(f"a{n}", slots=many) for n, many in enumerate(slots)]
    count = 2 * sum(slots) * percent // 100

    taken = Counter(assign(records, count, Strategy.LEAST_BUSY, KIND))

    for record in records:
        share = count * record.registration.slots / sum(slots)
        assert -len(slots) <= taken[record.agent_id] - share <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_load_balanced_gives_the_nearest_whole_numbers_to_the_shares(slots: list[int], percent: int) -> None:
    records = [make_record(f"a{n}", slots=many) for n, many in enumerate(slots)]
    count, scale = 2 * sum(slots) * percent // 100, Scale.of(records)
    points = {record.agent_id: score(record, LOAD_BALANCED, scale) for record in records}

    taken = Counter(assign(records, count, Strategy.LOAD_BALANCED, KIND))

    nobody_is_full = all(taken[record.agent_id] < room(record) for record in records)
    for record in records:
        part = points[record.agent_id] / sum(points.values())
        over, near = taken[record.agent_id] - count * part, 0.5 + len(slots) * part / 2 + 1e-9
        assert over <= near or not nobody_is_full
        assert over >= -near or taken[record.agent_id] == room(record)


def test_load_balanced_gives_a_sick_agent_less_and_the_queue_what_is_over() -> None:
    sick = make_record("sick", slots=4, completed=10, failed_attempts=90)
    records = [sick, make_record("b", slots=4), make_record("c", slots=4)]

    some, all_of_it = (Counter(assign(records, many, Strategy.LOAD_BALANCED, KIND)) for many in (12, 30))

    assert some[AgentId("sick")] == 0
    assert some[AgentId("b")] == some[AgentId("c")] == 6
    assert all_of_it == {"sick": 8, "b": 8, "c": 8, None: 6}


def test_best_match_moves_on_to_the_next_best_when_the_best_is_full() -> None:
    both, one = make_record("both", slots=2, tags=frozenset({"gpu", "eu"})), make_record("one", tags=frozenset({"eu"}))

    given_out = assign([one, both], 14, Strategy.BEST_MATCH, KIND, wanted=Wanted(tags={"gpu", "eu"}))

    assert given_out[0] == "both"
    assert Counter(given_out) == {"both": 4, "one": 8, None: 2}


def test_equals_are_not_always_begun_with_the_same() -> None:
    records = [make_record(name) for name in ("a", "b", "c")]

    first = [assign(records, 1, Strategy.LOAD_BALANCED, KIND, turn=turn)[0] for turn in range(3)]

    assert first == ["a", "b", "c"]


def test_room_is_what_the_inbox_holds_and_without_it_nobody_gets_anything() -> None:
    inbox = agent_queues(AgentId("a"), slots=7).queues[0]

    assert inbox.max_length == 7 * INBOX_SLOTS
    assert room(make_record("a", slots=7)) == inbox.max_length

    full = make_record("full", slots=2, running=4)

    assert assign([full, replace(full, lease_ms=0)], 2, Strategy.BEST_MATCH, KIND) == (None, None)


def takes_work(record: AgentRecord, records: list[AgentRecord]) -> bool:
    living = [one for one in records if one.lease_ms]
    ready = [one for one in living if one.load.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
    starting = [one for one in living if one.load.status is AgentStatus.STARTING]
    return record in (ready or starting)
