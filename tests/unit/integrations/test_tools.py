"""What is offered as tools: how often the registry is read for it, and what a registry that fails leaves behind."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent
from coditect.errors import RegistryUnavailable
from coditect.integrations.tools import LOOK_SECONDS, OfferedCapabilities
from coditect.model.registration import AgentRecord
from coditect.registry.port import Search
from coditect.testing import TestFleet


async def count(text: str) -> int:
    return len(text)


def counter(*names: str) -> Agent:
    agent = Agent("counter")
    for name in names:
        agent.capability(name)(count)
    return agent


async def test_calls_read_the_registry_at_most_once_a_second_and_see_who_came() -> None:
    async with TestFleet(agents=[counter("text.count")]) as fleet:
        looks = 0

        async def find(search: Search) -> tuple[AgentRecord, ...]:
            nonlocal looks
            looks += 1
            await asyncio.sleep(0.01)
            return await fleet.registry.find(search)

        offers = OfferedCapabilities(find)
        found = await asyncio.gather(*[offers.now() for _ in range(50)])
        assert [set(one) for one in found] == [{"text.count"}] * 50
        await fleet.add(counter("text.count", "text.find"))
        assert set(await offers.now()) == {"text.count"}
        assert looks == 1

        await asyncio.sleep(LOOK_SECONDS)
        assert set(await offers.now()) == {"text.count", "text.find"}
        assert looks == 2


async def test_a_registry_that_fails_is_asked_again_by_the_next_call() -> None:
    async with TestFleet(agents=[counter("text.count")]) as fleet:
        offers = OfferedCapabilities(fleet.registry.find)
        fleet.registry.failing = True
        with pytest.raises(RegistryUnavailable):
            await offers.now()

        fleet.registry.failing = False
        assert set(await offers.now()) == {"text.count"}
