"""The strategy `predictive`: by features of the input, never worse than `adaptive`, and explained."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.parts.selection import SCENARIOS, mean_regret
from coditect import Agent, Strategy
from coditect.errors import SetupError
from coditect.model.capability import CapabilitySpec
from coditect.model.prediction import Weight
from coditect.operations.explain import TaskQuestion, explain
from coditect.registry.document import decode_load, encode_load
from coditect.registry.port import Search
from coditect.testing import TestFleet
from tests.unit.registry.samples import make_record, make_registration

CAPABILITY = "page.render"


def renderer(name: str, quick: str) -> Agent:
    """An agent that is quick in one language."""
    agent = Agent(name, slots=4)

    @agent.capability(CAPABILITY, strategy="predictive", features=["language"])
    async def render(page: dict[str, Any]) -> str:
        await asyncio.sleep(0.05 if page["language"] == quick else 0.8)
        return name

    return agent


@pytest.mark.parametrize("name", SCENARIOS)
def test_regret_is_never_above_that_of_adaptive(name: str) -> None:
    scenario = SCENARIOS[name]
    theirs, ours = (mean_regret(scenario, one, seeds=2) for one in (Strategy.ADAPTIVE, Strategy.PREDICTIVE))

    assert ours <= theirs


async def test_tasks_go_where_their_language_is_quick_and_the_choice_is_explained() -> None:
    async with TestFleet([renderer("ada", "ada"), renderer("go", "go")], seed=7) as fleet:
        await fleet.advance("10s")
        for _ in range(100):
            for language in ("ada", "go"):
                await (await fleet.submit(CAPABILITY, {"language": language})).result(timeout="1m")
        handles = [
            (language, handle)
            for language in ("ada", "go")
            async for handle in fleet.client.submit_many(CAPABILITY, [{"language": language}] * 6)
        ]
        done = Counter([(language, await handle.result(timeout="1m")) for language, handle in handles])
        records = await fleet.registry.find(Search())

    assert done["ada", "ada"] >= 5
    assert done["go", "go"] >= 5
    explained = explain(TaskQuestion(CAPABILITY, body=b'{"language": "go"}'), records, ())
    told = {one.agent_id.partition("-")[0]: one.text for one in explained.agents}
    assert "language=go x" in told["go"]
    assert told["go"].endswith("`predictive` picks it")
    assert "for this input predicted" in told["ada"]
    assert "picks it" not in told["ada"]


def test_a_choice_is_explained_by_the_features_of_the_agent_that_started_last_as_it_is_made() -> None:
    fleet = []
    for name, features, started_at_ms in (("a-0000000a", ("pages",), 1), ("b-0000000b", ("language",), 2)):
        offer = CapabilitySpec(CAPABILITY, features=features)
        registration = replace(make_registration(name, offers=(offer,)), started_at_ms=started_at_ms)
        weights = (Weight(CAPABILITY, "", 3.0, 0.0), Weight(CAPABILITY, "language=go", 1.0, 0.0))
        fleet.append(replace(make_record(name, learned=weights), registration=registration))

    explained = explain(TaskQuestion(CAPABILITY, body=b'{"language": "go", "pages": 9}'), fleet, ())

    assert all("language=go x2.72" in one.text for one in explained.agents)


async def test_capability_without_features_is_chosen_as_by_adaptive() -> None:
    agent = Agent("plain")

    @agent.capability(CAPABILITY, strategy=Strategy.PREDICTIVE)
    async def render(page: Any) -> None:
        pass

    async with TestFleet([agent]) as fleet:
        for value in (None, {"a": 1}, b"not json"):
            await (await fleet.submit(CAPABILITY, value)).outcome(timeout="1m")
        (record,) = await fleet.registry.find(Search())

    assert (record.load.learned, record.registration.capabilities[0].features) == ((), ())


def test_what_was_learned_survives_the_registry_and_rows_of_others_are_skipped() -> None:
    learned = (Weight(CAPABILITY, "", 3.912, 0.25), Weight(CAPABILITY, "language=go", -0.5, 0.0))
    load = replace(make_record("a").load, learned=learned)

    assert decode_load(encode_load(load)).learned == learned
    broken = encode_load(load).replace(b'"language=go",-0.5', b'"language=go","x"')
    assert decode_load(broken).learned == learned[:1]


@pytest.mark.parametrize("features", [["a b"], [""], ["a..b"], ["x=y"], [5], 5, [f"f{number}" for number in range(11)]])
def test_features_that_are_none_are_refused_at_the_declaration(features: Any) -> None:
    with pytest.raises(SetupError, match="features"):
        Agent("a").capability(CAPABILITY, features=features)
