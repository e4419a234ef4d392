from __future__ import annotations

import asyncio

import pytest

from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.registry import memory
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import GONE_SECONDS, Search
from tests.unit.registry.samples import IDLE, make_registration

A = AgentId("reviewer-0000000a")


class Time:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


async def test_lease_lapses_by_the_injected_time_at_its_very_end() -> None:
    time = Time()
    registry = MemoryRegistry(now=time)
    await registry.register(make_registration(), IDLE, lease_seconds=3)

    time.seconds += 2.75
    before = await registry.get(A)
    time.seconds += 0.25
    after = await registry.get(A)

    assert before is not None
    assert before.lease_ms == 250
    assert after is None


async def test_agents_that_went_away_are_kept_for_a_day_and_no_more_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time = Time()
    registry = MemoryRegistry(now=time)
    monkeypatch.setattr(memory, "MOST_GONE", 2)
    for number in range(3):
        await registry.register(make_registration(f"a-{number}"), IDLE, lease_seconds=3)
        time.seconds += 4
    kept = await registry.gone()
    time.seconds += GONE_SECONDS - 3

    assert [record.agent_id for record in kept] == ["a-1", "a-2"]
    assert [record.agent_id for record in await registry.gone()] == ["a-2"]


async def test_failing_registry_refuses_every_call_and_writes_nothing() -> None:
    registry = MemoryRegistry()
    registry.failing = True
    calls = [
        registry.register(make_registration(), IDLE, lease_seconds=3),
        registry.renew(A, IDLE, lease_seconds=3),
        registry.deregister(A),
        registry.find(Search()),
        registry.get(A),
        registry.capabilities(),
        registry.next_turn("x"),
    ]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [RegistryUnavailable] * len(calls)
    registry.failing = False
    assert await registry.find(Search()) == ()


async def test_slow_registry_answers_late() -> None:
    registry = MemoryRegistry()
    registry.slow_seconds = 0.05
    started = asyncio.get_running_loop().time()

    turn = await registry.next_turn("x")

    assert turn == 1
    assert asyncio.get_running_loop().time() - started >= 0.05


async def test_registry_slower_than_a_call_may_take_is_unavailable_within_the_limit() -> None:
    registry = MemoryRegistry()
    registry.slow_seconds = 60
    started = asyncio.get_running_loop().time()

    with pytest.raises(RegistryUnavailable):
        await registry.find(Search())

    assert asyncio.get_running_loop().time() - started < registry.slow_seconds / 2
