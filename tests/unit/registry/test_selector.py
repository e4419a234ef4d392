from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.model.capability import ANYTHING, Strategy, Wanted
from coditect.model.ids import AgentId
from coditect.model.prediction import RecentOutcomes, task_kind
from coditect.model.registration import AgentRecord
from coditect.registry import selector as selector_module
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from coditect.registry.selector import TASKS_PER_LOOKUP, Pick, Selector
from tests.support import eventually
from tests.unit.registry.samples import IDLE, REVIEW, make_registration

CAPABILITY = REVIEW.name
BODY = b"0" * 100
"""The size of a task's input."""


class CountingRegistry(MemoryRegistry):
    """Counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.finds: Counter[str | None] = Counter()
        self.turns = 0

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        self.finds[search.capability] += 1
        return await super().find(search)

    async def next_turn(self, name: str) -> int:
        self.turns += 1
        return await super().next_turn(name)

    async def fleet(self, *slots: int, asks: Strategy | None = None) -> None:
        """Agents a0, a1, ... with so many slots each."""
        for number, many in enumerate(slots):
            offers = (replace(REVIEW, strategy=asks),)
            registration = make_registration(f"a{number}", slots=many, offers=offers)
            await self.register(registration, IDLE, lease_seconds=60)


@pytest.fixture
def registry() -> CountingRegistry:
    return CountingRegistry()


@pytest.fixture
async def selector(registry: CountingRegistry) -> AsyncIterator[Selector]:
    async with Supervisor() as background:
        yield Selector(registry, SystemClock(), background)


async def picks(selector: Selector, many: int, strategy: Strategy | None) -> Counter[AgentId | None]:
    return Counter([agent_of(await selector.pick(CAPABILITY, strategy, ANYTHING, body=BODY)) for _ in range(many)])


async def batch(selector: Selector, many: int, strategy: Strategy | None, *, size: int = 500) -> list[AgentId | None]:
    sequence = selector.batch(CAPABILITY, strategy, ANYTHING, many=size)
    return [agent_of(await sequence.next(BODY)) for _ in range(many)]


def agent_of(pick: Pick | None) -> AgentId | None:
    return None if pick is None else pick.agent_id


async def learnt(selector: Selector, registry: CountingRegistry) -> None:
    assert await selector.pick(CAPABILITY, None, ANYTHING, body=BODY) is None
    await eventually(lambda: selector._known.get(CAPABILITY) is not None)


@pytest.mark.parametrize("strategy", Strategy)
async def test_many_picks_are_one_read_of_the_registry(
    selector: Selector, registry: CountingRegistry, strategy: Strategy
) -> None:
    await registry.fleet(4, 4)

    many = await asyncio.gather(*(selector.pick(CAPABILITY, strategy, ANYTHING, body=BODY) for _ in range(50)))

    assert {agent_of(pick) for pick in many} == {"a0", "a1"}
    assert registry.finds == {CAPABILITY: 1}


async def test_picks_from_one_read_do_not_all_go_to_the_same(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(2, 4, 6)

    assert await picks(selector, 60, Strategy.LEAST_BUSY) == {"a0": 10, "a1": 20, "a2": 30}


async def test_what_is_old_is_read_again(
    selector: Selector, registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector_module, "FRESH_ENTRY_SECONDS", 0.0)
    await registry.fleet(4)
    await picks(selector, 3, Strategy.LEAST_BUSY)

    assert registry.finds[CAPABILITY] == 3


async def test_turns_are_the_fleet_s_own_for_single_picks(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(4, 4, 4)
    async with Supervisor() as background:
        other = Selector(registry, SystemClock(), background)

        turns = [
            agent_of(await one.pick(CAPABILITY, Strategy.ROUND_ROBIN, ANYTHING, body=BODY))
            for _ in range(6)
            for one in (selector, other)
        ]

    assert all(len(set(turns[start : start + 3])) == 3 for start in range(0, 12, 3))


async def test_batch_is_assigned_from_one_read_and_the_rest_is_the_broker_s(
    selector: Selector, registry: CountingRegistry
) -> None:
    await registry.fleet(2, 4)

    assigned = await batch(selector, 100, Strategy.LOAD_BALANCED)

    assert Counter(assigned) == {"a0": 4, "a1": 8, None: 88}
    assert None not in assigned[:12]
    assert (registry.finds[CAPABILITY], registry.turns) == (1, 0)


async def test_two_batches_share_the_room(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(2, 4)

    both = [*await batch(selector, 7, Strategy.ROUND_ROBIN), *await batch(selector, 7, Strategy.ROUND_ROBIN)]

    assert Counter(both) == {"a0": 4, "a1": 8, None: 2}


async def test_what_a_batch_did_not_use_is_free_for_the_next(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(2)

    assert await batch(selector, 1, Strategy.LEAST_BUSY) == ["a0"]
    assert await batch(selector, 4, Strategy.LEAST_BUSY) == ["a0", "a0", "a0", None]


async def test_batch_that_goes_on_looks_again(
    selector: Selector, registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.fleet(2)
    sequence = selector.batch(CAPABILITY, Strategy.LEAST_BUSY, ANYTHING, many=100)
    first = [await sequence.next(BODY) for _ in range(5)]
    monkeypatch.setattr(selector_module, "FRESH_ENTRY_SECONDS", 0.0)

    assert first[-1] is None
    assert agent_of(await sequence.next(BODY)) == "a0"


async def test_adaptive_batch_chooses_again_when_the_inputs_size_changes(
    selector: Selector, registry: CountingRegistry
) -> None:
    for name, small_ms, large_ms in (("sprinter", 5, 900), ("carrier", 50, 90)):
        recent = tuple(
            RecentOutcomes(task_kind(CAPABILITY, size), 20, ms, 1.0)
            for size, ms in ((100, small_ms), (9_000, large_ms))
        )
        await registry.register(make_registration(name, slots=40), replace(IDLE, recent=recent), lease_seconds=60)
    selector._turns[CAPABILITY] = 1
    sequence = selector.batch(CAPABILITY, Strategy.ADAPTIVE, ANYTHING, many=4)

    chosen = [agent_of(await sequence.next(b"0" * size)) for size in (100, 100, 9_000, 9_000, 100)]

    assert chosen == ["sprinter", "sprinter", "carrier", "carrier", "sprinter"]
    assert registry.finds == {CAPABILITY: 1}


async def test_call_without_a_strategy_waits_for_nothing_and_learns_beside(
    selector: Selector, registry: CountingRegistry
) -> None:
    await registry.fleet(4)

    assert await picks(selector, 1_000, None) == {None: 1_000}
    assert registry.finds[CAPABILITY] == 0
    await eventually(lambda: registry.finds[CAPABILITY])
    assert await picks(selector, 1_000, None) == {None: 1_000}
    assert registry.finds[CAPABILITY] == 1


async def test_call_without_a_strategy_follows_its_capability(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(4, 4, asks=Strategy.ROUND_ROBIN)
    await learnt(selector, registry)

    assert await picks(selector, 100, None) == {"a0": 50, "a1": 50}
    assert (registry.finds[CAPABILITY], registry.turns) == (1, 0)


async def test_batch_without_a_strategy_follows_its_capability_once_that_is_known(
    selector: Selector, registry: CountingRegistry
) -> None:
    await registry.fleet(2, 4, asks=Strategy.LEAST_BUSY)
    sequence = selector.batch(CAPABILITY, None, ANYTHING, many=100)
    first = [await sequence.next(BODY) for _ in range(TASKS_PER_LOOKUP)]
    await eventually(lambda: registry.finds[CAPABILITY])

    assert first == [None] * TASKS_PER_LOOKUP
    assert Counter([agent_of(await sequence.next(BODY)) for _ in range(20)]) == {"a0": 4, "a1": 8, None: 8}


async def test_strategy_of_a_call_comes_before_its_capability_s(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(1, 9, asks=Strategy.LEAST_BUSY)
    await learnt(selector, registry)

    assert await picks(selector, 10, Strategy.ROUND_ROBIN) == {"a0": 5, "a1": 5}


async def test_newest_version_says_what_its_capability_asks_for(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(4)
    newer = replace(
        make_registration("b0", offers=(replace(REVIEW, strategy=Strategy.LEAST_BUSY),)),
        started_at_ms=1_900_000_000_000,
    )
    await registry.register(newer, IDLE, lease_seconds=60)
    await learnt(selector, registry)

    assert await picks(selector, 8, None) == {"a0": 4, "b0": 4}


async def test_what_is_wanted_is_the_best_match(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(4, 4)
    await registry.register(make_registration("b0", tags=frozenset({"gpu"})), IDLE, lease_seconds=60)

    assert agent_of(await selector.pick(CAPABILITY, None, Wanted(tags={"gpu"}), body=BODY)) == "b0"


@pytest.mark.parametrize("strategy", [None, *Strategy])
async def test_registry_that_fails_leaves_it_to_the_broker(
    selector: Selector, registry: CountingRegistry, strategy: Strategy | None
) -> None:
    await registry.fleet(4, asks=Strategy.LEAST_BUSY)
    registry.failing = True

    assert await picks(selector, 5, strategy) == {None: 5}
    assert await batch(selector, 40, strategy) == [None] * 40
    assert registry.finds[CAPABILITY] <= 1


@pytest.mark.parametrize("strategy", [None, *Strategy])
async def test_client_without_a_registry_leaves_it_to_the_broker(strategy: Strategy | None) -> None:
    async with Supervisor() as background:
        selector = Selector(None, SystemClock(), background)

        assert await picks(selector, 5, strategy) == {None: 5}
        assert await batch(selector, 40, strategy) == [None] * 40
        assert len(background) == 0


async def test_what_was_learnt_too_long_ago_is_not_gone_by(
    selector: Selector, registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.fleet(4, asks=Strategy.LEAST_BUSY)
    await learnt(selector, registry)
    monkeypatch.setattr(selector_module, "LEARN_SECONDS", 0.0)

    assert await selector.pick(CAPABILITY, None, ANYTHING, body=BODY) is None


async def test_task_whose_end_is_known_does_not_count_any_more(selector: Selector, registry: CountingRegistry) -> None:
    await registry.fleet(1)
    await registry.register(make_registration("b0", tags=frozenset({"gpu"}), slots=1), IDLE, lease_seconds=60)

    for _ in range(20):
        pick = await selector.pick(CAPABILITY, None, Wanted(tags={"gpu"}), body=BODY)
        assert pick is not None
        assert pick.agent_id == "b0"
        pick.over(None)
    assert registry.finds[CAPABILITY] == 1


async def test_capability_that_begins_to_ask_is_followed_in_time(
    selector: Selector, registry: CountingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector_module, "LEARN_SECONDS", 0.2)
    await registry.fleet(4)
    await learnt(selector, registry)
    assert await picks(selector, 5, None) == {None: 5}

    await registry.fleet(4, asks=Strategy.LEAST_BUSY)

    async def followed() -> bool:
        return agent_of(await selector.pick(CAPABILITY, None, ANYTHING, body=BODY)) == "a0"

    await eventually(followed)
