"""Hostile messages beside a fleet's own work: each ends after a bounded number of deliveries, none counts as ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Options, Retry, Workflow
from coditect.agent.settlement import MOST_RETURNS
from coditect.broker.memory import MemoryBroker
from coditect.broker.port import Delivery, OnDelivery
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import InvalidTask
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.testing import TestFleet
from coditect.wire import routing
from tests.unit.agent.scene import replies
from tests.unit.wire.hostile import ANSWERS, LEDGER, PARENT, QUESTION, Hostile, hostile_messages

ATTEMPTS = 2
MOST_DELIVERIES = ATTEMPTS + MOST_RETURNS
OUR_DELIVERIES = 50


class Stage:
    """What the agents saw."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.deliveries = 0
        self.work = Agent("work", slots=2)
        self.parent = Agent("parent", slots=2)

        @self.work.capability("strange.work", retry=Retry(max_attempts=ATTEMPTS, first="100ms"))
        async def say(asked: dict[str, Any], ctx: Context) -> str:
            said = str(asked.get("say", "nothing"))
            self.runs[said] += 1
            if said == "ours":
                await asyncio.sleep(0.05)  # so that a forged answer has the time to be first
            if said == "fail":
                raise ValueError(said)
            return f"heard {said}"

        @self.parent.capability("ask.twice")
        async def ask(_: Any, ctx: Context) -> list[str]:
            return [await ctx.request("strange.work", QUESTION) for _ in range(2)]


def _count(broker: MemoryBroker, stage: Stage) -> None:
    """Counts what the queues of an agent bring it from now on."""
    for consumer in broker._consumers:
        if consumer.queue.startswith(("tasks.", "agent.")):
            deliver = consumer._on_delivery

            def counted(delivery: Delivery, deliver: OnDelivery = deliver) -> None:
                stage.deliveries += 1
                deliver(delivery)

            consumer._on_delivery = counted


async def publish(broker: MemoryBroker, one: Hostile) -> bool:
    """Whether AMQP can carry it at all."""
    message = Message(
        one.body,
        one.headers,
        message_id=one.message_id,
        correlation_id=one.correlation_id,
        reply_to=one.reply_to,
        type=one.type,
        expiration_ms=one.expiration_ms,
    )
    try:
        await broker.publish(message, exchange=routing.TASKS, routing_key=one.key)
    except InvalidTask:
        return False
    return True


async def _run(hostile: list[Hostile]) -> None:
    stage = Stage()
    flow = Workflow("ours")
    first = flow.task("strange.work", QUESTION)
    flow.task("ask.twice", None, after=[first])
    async with (
        TestFleet(agents=[stage.work, stage.parent]) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        await stranger.declare(Topology(queues=(Queue(ANSWERS, QueueType.CLASSIC), Queue(LEDGER, QueueType.CLASSIC))))
        answers, ledger = await replies(stranger, ANSWERS), await replies(stranger, LEDGER)
        for agent in fleet.agents:
            _count(agent.broker, stage)
        half = len(hostile) // 2

        taken = [one for one in hostile[:half] if await publish(stranger, one)]
        own = [
            await fleet.submit("ask.twice", options=Options(task_id=PARENT)),
            *[await fleet.submit("ask.twice") for _ in range(3)],
        ]
        run = await fleet.start(flow)
        taken += [one for one in hostile[half:] if await publish(stranger, one)]

        for handle in own:
            assert await handle.result(list, timeout="1m") == ["heard ours"] * 2
        assert await run.result(list, timeout="5m") == ["heard ours"] * 2
        await fleet.advance("5m")

        assert fleet.elapsed_seconds < 900
        queues = {name: found for name in _queues() if (found := fleet.server.find(name)) is not None}
        left = {name: queue.stats.messages + queue.in_hand for name, queue in queues.items()}
        assert set(left.values()) == {0}, "nothing goes round for ever"
        for agent in fleet.agents:
            assert agent.load.running == agent.load.suspended == 0, "nothing stays in hand"
        assert ledger == [], "nothing is written where it is not meant to be"
        _judge(taken, answers, stage)


def _judge(taken: list[Hostile], answers: list[Delivery], stage: Stage) -> None:
    asked = [one for one in taken if one.reply_to == ANSWERS]
    sure = [one for one in asked if one.key.startswith("strange.") or one.expiration_ms is None]
    assert len(answers) >= len(sure), "each is answered; of what has no queue the broker may drop the copy as expired"
    assert len(answers) <= len(asked), "and once"
    failing = sum(b"fail" in one.body for one in taken)
    assert stage.runs["fail"] <= ATTEMPTS * failing, "no header raises what the capability allows"
    assert stage.deliveries <= MOST_DELIVERIES * len(taken) + OUR_DELIVERIES, "with bounded work"


def _queues() -> list[str]:
    tasks = [routing.task_queue(name, level) for name in ("strange.work", "ask.twice") for level in Priority]
    retries = [routing.retry_queue(delay) for delay in RETRY_DELAYS_MS]
    return [*tasks, *retries, routing.UNROUTED_NOTICES, routing.DEAD_NOTICES]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(hostile_messages(), min_size=2, max_size=12))
def test_hostile_messages_end_and_the_fleets_own_work_is_done(hostile: list[Hostile]) -> None:
    asyncio.run(_run(hostile))
