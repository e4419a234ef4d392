"""Whatever lies in a capability's queue: it is settled, answered once, and what comes behind it is done."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coditect import Agent, Retry
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import InvalidTask
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing
from tests.integration.wire.strategies import Strange, strange_messages
from tests.support import eventually
from tests.unit.agent.scene import Scene, open_scene, replies

CAPABILITY = "strange.work"
ANSWERS = "answers"
GOOD = "the good one"


def _agent() -> Agent:
    agent = Agent("strange", slots=2)

    @agent.capability(CAPABILITY, retry=Retry(max_attempts=1))
    async def say(work: dict[str, str]) -> str:
        return work.get("say", "nothing")

    return agent


async def _publish(scene: Scene, strange: Strange, correlation_id: str) -> bool:
    """Whether AMQP can carry it at all."""
    message = Message(
        strange.body,
        strange.headers,
        message_id=strange.message_id,
        correlation_id=correlation_id,
        reply_to=ANSWERS,
        type=strange.type,
    )
    try:
        await (await scene.broker()).publish(message, exchange=routing.TASKS, routing_key=CAPABILITY)
    except InvalidTask:
        return False
    return True


async def _run(messages: list[Strange]) -> None:
    async with open_scene() as scene:
        running = await scene.start(_agent())
        broker = await scene.broker()
        await broker.declare(Topology(queues=(Queue(ANSWERS, QueueType.CLASSIC),)))
        answers = await replies(broker, ANSWERS)

        taken = [str(n) for n, one in enumerate(messages) if await _publish(scene, one, str(n))]
        await _publish(scene, Strange(b'{"say": "x"}', {}, None, None), GOOD)

        await eventually(lambda: len(answers) >= len(taken) + 1)
        assert sorted(str(one.message.correlation_id) for one in answers) == sorted([*taken, GOOD])
        assert all(scene.ready(routing.task_queue(CAPABILITY, level)) == 0 for level in Priority)
        assert running.broker.connected
        await running.stop()
        assert scene.ready_tasks(CAPABILITY) == 0, "everything was settled"


@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(strange_messages(), min_size=1, max_size=8))
def test_strange_messages_are_each_answered_once_and_hold_up_nobody(messages: list[Strange]) -> None:
    asyncio.run(_run(messages))
