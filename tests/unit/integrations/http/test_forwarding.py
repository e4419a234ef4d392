"""Later answers that another API process gets than the one that posted the request."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Agent
from coditect.broker.memory import MemoryBroker
from coditect.errors import InvalidTask, NotFound, Overloaded, Retryable
from coditect.integrations.http.callbacks import Callbacks
from coditect.integrations.http.directory import HttpAgents
from coditect.integrations.http.forwarding import TOPIC, AnswerForwarding, heard
from coditect.integrations.http.messages import AgentResponseEvent
from tests.support import eventually
from tests.unit.integrations.http.stage import HOSTS, LEASE_SECONDS, Given, Stage, open_bridge, stub_agent


def later(event: dict[str, Any]) -> Given:
    return Given(202)


def answer_to(event: dict[str, Any], result: Any = 7) -> AgentResponseEvent:
    return AgentResponseEvent.model_validate({"request_id": event["event_id"], "status": "success", "result": result})


def token_of(event: dict[str, Any]) -> str:
    return str(event["callback_url"]).rpartition("/")[2]


def agents_of(stage: Stage) -> HttpAgents:
    return HttpAgents(
        stage.registrations, stage.scene.registry, stage.bridge, stage.callbacks, HOSTS, lease_seconds=LEASE_SECONDS
    )


async def test_an_answer_that_arrives_at_another_process_ends_the_task(stage: Stage) -> None:
    with stub_agent(later) as agent:
        await stage.register(agent.url, "words.count")
        async with (
            open_bridge(stage.scene, stage.registrations, name="bridge-2") as second,
            MemoryBroker(stage.scene.server, name="api-2") as broker,
        ):
            handle = await (await stage.scene.client()).submit("words.count")
            await eventually(lambda: agent.events)
            (event,) = agent.events
            other = agents_of(second)

            with pytest.raises(InvalidTask, match="another request"):
                await other.answer(token_of(event), answer_to({"event_id": "another"}), broker)
            await other.answer(token_of(event), answer_to(event), broker)

            assert await handle.result(timeout="10s") == 7
            with pytest.raises(NotFound, match="the attempt is over"):
                await other.answer(token_of(event), answer_to(event, 8), broker)


async def test_an_answer_for_an_agent_that_is_gone_is_late(stage: Stage) -> None:
    async with MemoryBroker(stage.scene.server, name="api-2") as broker:
        with pytest.raises(NotFound, match="the attempt is over"):
            await agents_of(stage).answer("words-00000000.guessed", answer_to({"event_id": "x"}), broker)


async def test_an_answer_is_passed_on_to_no_agent_that_does_not_speak_http(stage: Stage) -> None:
    running = await stage.scene.start(Agent("native"))
    async with MemoryBroker(stage.scene.server, name="api-2") as broker:
        with pytest.raises(NotFound, match="the attempt is over"):
            await agents_of(stage).answer(f"{running.agent_id}.guessed", answer_to({"event_id": "x"}), broker)


async def test_so_many_answers_are_passed_on_at_once(stage: Stage) -> None:
    answer, one = answer_to({"event_id": "x"}), AnswerForwarding(most=1)
    async with MemoryBroker(stage.scene.server, name="api-2") as broker:
        with pytest.raises(Overloaded):
            await AnswerForwarding(most=0).send(broker, "words-00000000.a", answer)
        for _ in range(2):
            with pytest.raises(Retryable, match="post it again"):
                await one.send(broker, "words-00000000.a", answer)


@pytest.mark.parametrize("content", [None, 7, {"token": "x"}, {"token": "x", "answer": {"status": "fine"}}])
def test_what_is_no_answer_is_taken_by_no_attempt(content: object) -> None:
    assert heard(Callbacks(), content)["taken"] is False
    assert TOPIC.startswith("coditect.")
