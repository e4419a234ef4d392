"""Later answers that another API process gets than the one that posted the request."""

from __future__ import annotations

import pytest

from coditect import Agent
from coditect.broker.memory import MemoryBroker
from coditect.errors import InvalidTask, NotFound, Overloaded, Retryable
from coditect.integrations.http.messages import TOPIC, AnswerForwarding, Callbacks, heard
from tests.support import eventually
from tests.unit.integrations.http.stage import Stage, answered, later, open_bridge, stub_agent, token_of


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
            other = second.agents

            with pytest.raises(InvalidTask, match="another request"):
                await other.answer(token_of(event), answered({"event_id": "another"}), broker)
            await other.answer(token_of(event), answered(event, result=7), broker)

            assert await handle.result(timeout="10s") == 7
            with pytest.raises(NotFound, match="the attempt is over"):
                await other.answer(token_of(event), answered(event, result=8), broker)


async def test_an_answer_for_an_agent_that_is_gone_or_speaks_no_http_is_late_and_few_are_passed_on_at_once(
    stage: Stage,
) -> None:
    running = await stage.scene.start(Agent("native"))
    answer, one = answered({"event_id": "x"}), AnswerForwarding(limit=1)
    async with MemoryBroker(stage.scene.server, name="api-2") as broker:
        with pytest.raises(NotFound, match="the attempt is over"):
            await stage.agents.answer(f"{running.agent_id}.guessed", answered({"event_id": "x"}), broker)

        with pytest.raises(NotFound, match="the attempt is over"):
            await stage.agents.answer("words-00000000.guessed", answered({"event_id": "x"}), broker)

        with pytest.raises(Overloaded):
            await AnswerForwarding(limit=0).send(broker, "words-00000000.a", answer)
        for _ in range(2):
            with pytest.raises(Retryable, match="post it again"):
                await one.send(broker, "words-00000000.a", answer)


@pytest.mark.parametrize("content", [None, 7, {"token": "x"}, {"token": "x", "answer": {"status": "fine"}}])
def test_what_is_no_answer_is_taken_by_no_attempt(content: object) -> None:
    assert heard(Callbacks(), content)["taken"] is False
    assert TOPIC.startswith("coditect.")
