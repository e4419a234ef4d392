"""What an HTTP agent may ask of the bridge: to be registered, to stay, to be found."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from coditect import Agent
from coditect.broker.memory import MemoryBroker
from coditect.errors import Conflict, InputError, InvalidTask, NotFound, Overloaded
from coditect.integrations.http import bridge
from coditect.integrations.http.bridge import HttpAgents
from coditect.integrations.http.messages import AgentResponseEvent, AnswerStatus
from coditect.integrations.http.registration import HttpRegistration
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.registry.port import LEFT, Search
from tests.support import eventually
from tests.unit.integrations.http.stage import LEASE_SECONDS, Given, Stage, stub_agent

WORDS = AgentId("words-00000000")
NOWHERE = "http://127.0.0.1:9"
ANSWER = AgentResponseEvent(request_id="another", status=AnswerStatus.SUCCESS)


@pytest.fixture
def agents(stage: Stage) -> HttpAgents:
    return stage.agents


@pytest.fixture
async def native_id(stage: Stage) -> AgentId:
    """An agent that does not speak HTTP."""
    native = Agent("native")

    @native.capability("words.sort")
    async def sort(words: list[str]) -> list[str]:
        return sorted(words)

    return AgentId((await stage.scene.start(native)).agent_id)


def registration(url: str = NOWHERE, **fields: Any) -> HttpRegistration:
    return HttpRegistration(**{"name": "words", "base_url": url, "capabilities": ["words.count"]} | fields)


async def test_registering_again_keeps_the_agent_and_changes_its_registration(agents: HttpAgents) -> None:
    first = await agents.register(registration())
    again = await agents.register(registration(version="2.0.0"))
    other = await agents.register(registration("http://127.0.0.1:7"))

    assert first == again
    assert first.agent_id != other.agent_id
    assert first.heartbeat_seconds == pytest.approx(LEASE_SECONDS / 3)
    assert (await agents.get(AgentId(first.agent_id))).registration.version == "2.0.0"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Words and more"}, "lower-case"),
        ({"agent_id": "next.native-00000001"}, "choose another agent_id"),
        ({"agent_id": "mail.native-00000001"}, "choose another agent_id"),
        ({"agent_id": "monitor-dispatcher-0-0123abcd"}, "choose another agent_id"),
        ({"capabilities": ["Words"]}, "lower-case words joined by dots"),
        ({"capabilities": ["words.count", "words.count"]}, "once"),
        ({"base_url": "http://example.org"}, "CODITECT_HTTP_HOSTS"),
        ({"capabilities": [{"name": "words.count", "input_schema": {"title": "x" * 300_000}}]}, "too large"),
        ({"capabilities": [{"name": "words.count", "input_schema": {"type": "txt"}}]}, "no JSON Schema"),
    ],
)
async def test_a_wrong_registration_says_what_to_write(agents: HttpAgents, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        await agents.register(registration(**fields))

    assert "at" not in refused.value.facts


@pytest.mark.parametrize("fields", [{"capabilities": []}, {"slots": 0}, {"agent_id": "a/b"}, {"more": 1}])
def test_a_registration_of_another_shape_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        registration(**fields)


async def test_a_heartbeat_extends_the_lease_and_that_of_an_unknown_agent_says_to_register(
    stage: Stage, agents: HttpAgents
) -> None:
    agent_id = AgentId((await agents.register(registration())).agent_id)

    beat = await agents.beat(agent_id)
    with pytest.raises(NotFound, match="POST /register"):
        await agents.beat(AgentId("words-00000000"))

    record = await stage.registrations.get(agent_id)
    assert (beat.agent_id, beat.status) == (agent_id, "starting")
    assert record is not None
    assert record.lease_ms > 0.9 * LEASE_SECONDS * 1000


async def test_agents_are_found_beside_the_fleet_also_before_a_bridge_serves_them(
    stage: Stage, agents: HttpAgents, native_id: AgentId
) -> None:
    waiting = AgentId((await agents.register(registration())).agent_id)
    with stub_agent() as stub:
        served = await stage.register(stub.url, "words.count")

        found = {agent.agent_id: agent.load.status for agent in await agents.find(Search())}
        counting = {agent.agent_id for agent in await agents.find(Search(capability="words.count"))}
        starting = [agent.agent_id for agent in await agents.find(Search(status=AgentStatus.STARTING))]
        keyword = {agent.agent_id for agent in await agents.find(Search(keyword="SORT"))}

        assert found == {
            native_id: AgentStatus.IDLE, waiting: AgentStatus.STARTING, served: AgentStatus.IDLE
        }  # fmt: skip
        assert counting == {waiting, served}
        assert starting == [waiting]
        assert keyword == {native_id}
        assert (await agents.health(served)).healthy
        unwell = await agents.health(waiting)
        assert (unwell.healthy, unwell.status) == (False, "starting")
        assert "URL" in unwell.reason
        with pytest.raises(NotFound) as unknown:
            await agents.health(AgentId(f"{served}x"))
        assert served in unknown.value.facts["nearest"]  # type: ignore[operator]


async def test_an_agent_that_registers_as_offline_is_not_served_and_its_heartbeats_get_404(
    stage: Stage, agents: HttpAgents
) -> None:
    with stub_agent() as stub:
        agent_id = await stage.register(stub.url, "words.count", name="words")

        answer = await agents.register(registration(stub.url, status="offline"))
        assert (answer.status, answer.lease_seconds) == ("offline", 0.0)
        await stage.stopped(agent_id)

        (gone,) = await agents.find(Search(status=AgentStatus.OFFLINE))
        assert (gone.agent_id, gone.load.trouble) == (agent_id, LEFT)
        assert await agents.find(Search()) == ()
        with pytest.raises(NotFound, match="POST /register"):
            await agents.beat(agent_id)


async def test_the_id_of_an_agent_of_another_kind_is_refused(agents: HttpAgents, native_id: AgentId) -> None:
    with pytest.raises(InputError, match="another agent_id"):
        await agents.register(registration(agent_id=native_id))


async def test_an_agent_whose_url_fails_waits_for_its_breaker_and_says_so(stage: Stage, agents: HttpAgents) -> None:
    with stub_agent(lambda event: Given(500)) as stub:
        agent_id = await stage.register(stub.url, "words.count", slots=3)
        client = await stage.scene.client()
        handles = [await client.submit("words.count") for _ in range(5)]

        async def unwell() -> bool:
            return "breaker" in (await agents.health(agent_id)).reason

        await eventually(unwell)
        assert not any(handle.done for handle in handles)


async def test_the_number_of_agents_is_bounded_also_for_heartbeats_of_those_whose_lease_has_ended(
    agents: HttpAgents, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "MOST_AGENTS", 1)
    lapsed = AgentId((await agents.register(registration())).agent_id)
    await agents.register(registration())
    with pytest.raises(Overloaded):
        await agents.register(registration("http://127.0.0.1:7"))

    stage.registrations.extend([lapsed], -2 * LEASE_SECONDS)
    await agents.register(registration("http://127.0.0.1:7"))
    with pytest.raises(Overloaded):
        await agents.beat(lapsed)


async def test_an_agent_that_registers_as_those_of_other_platforms_may_beat_every_30_seconds(
    agents: HttpAgents,
) -> None:
    foreign = await agents.register(registration(agent_name="Words"))
    beat = await agents.beat(AgentId(foreign.agent_id))

    assert beat == foreign
    assert (foreign.lease_seconds, foreign.heartbeat_seconds) == (90.0, 30.0)


async def test_only_the_key_that_registered_an_agent_or_an_admin_moves_it_to_another_url(agents: HttpAgents) -> None:
    def at(port: int, **fields: Any) -> HttpRegistration:
        return registration(f"http://127.0.0.1:{port}", agent_id="reviewer.1", **fields)

    async def owner() -> object:
        return (await agents.get(AgentId("reviewer.1"))).registration.metadata.get("registered_by")

    await agents.register(at(1), by="blue", admin=False)
    with pytest.raises(Conflict, match="another agent_id"):
        await agents.register(at(2, metadata={"registered_by": "green"}), by="green", admin=False)
    await agents.register(at(1, version="2.0.0"), by="green", admin=False)
    assert await owner() == "blue"
    await agents.register(at(2), by="blue", admin=False)
    await agents.register(at(3, metadata={"registered_by": "green"}), by="root")

    assert await owner() is None
    with pytest.raises(Conflict):
        await agents.register(at(4), by="green", admin=False)


async def test_an_answer_to_no_request_or_to_another_is_refused(agents: HttpAgents, stage: Stage) -> None:
    async with MemoryBroker(stage.scene.server, name="api") as broker:
        for token in ("guessed", "guessed.too", ".", ""):
            with pytest.raises(NotFound):
                await agents.answer(token, ANSWER, broker)

        with stage.callbacks.expect("task.1", WORDS) as expected, pytest.raises(InvalidTask, match="request_id"):
            await agents.answer(expected.token, ANSWER, broker)
