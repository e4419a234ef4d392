"""What is offered as tools: how often the registry is read for it, and what a registry that fails leaves behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest

from coditect import Agent
from coditect.errors import RegistryUnavailable
from coditect.integrations.tools import OFFERS_FRESH_SECONDS, OfferedCapabilities
from coditect.model.capability import CapabilitySpec
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
        assert [set(names) for names in found] == [{"text.count"}] * 50
        await fleet.add(counter("text.count", "text.find"))
        assert set(await offers.now()) == {"text.count"}
        assert looks == 1

        await asyncio.sleep(OFFERS_FRESH_SECONDS)
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


async def test_capabilities_whose_schemas_cannot_be_used_are_no_tools_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deep = reduce(lambda inner, _: {"anyOf": [inner]}, range(600), dict[str, Any]())
    bad: list[Any] = [{"type": 5}, {"enum": 3}, {"anyOf": None}, {"allOf": 7}, {"$schema": []}, {"$id": 1}, deep]
    bad += [{"pattern": "a{99999999999}"}, {"pattern": "("}]
    good: list[Any] = [{}, {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]}]
    given = {f"bad.n{number}": schema for number, schema in enumerate(bad)}
    given |= {f"good.n{number}": schema for number, schema in enumerate(good)}
    specs = [CapabilitySpec(name, input_schema=schema) for name, schema in given.items()]
    specs += [CapabilitySpec(f"{name}-out", output_schema=schema) for name, schema in given.items()]
    async with TestFleet(agents=[counter("text.count")]) as fleet:

        async def find(search: Search) -> tuple[AgentRecord, ...]:
            (record,) = await fleet.registry.find(search)
            offered = (*record.registration.capabilities, *specs)
            return (replace(record, registration=replace(record.registration, capabilities=offered)),)

        offers = OfferedCapabilities(find)
        found = [set(names) for names in await asyncio.gather(offers.as_tools(), offers.as_tools())]

    assert found == [{"good.n0", "good.n0-out", "good.n1", "good.n1-out", "text.count"}] * 2
    logged = [vars(record)["capability"] for record in caplog.records if "not offered as a tool" in record.message]
    assert sorted(logged) == sorted(spec.name for spec in specs if spec.name.startswith("bad"))
