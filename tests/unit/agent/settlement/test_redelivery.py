"""Connections and brokers that go away while work is in hand."""

from __future__ import annotations

import asyncio

import pytest

from coditect import Agent, Context, Handle, Retry
from coditect.agent.outcomes import FULL_REPLIES_SECONDS
from coditect.agent.settlement import SETTLE_PUBLISH_SECONDS
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import BrokerUnavailable
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.tasks import TASK_TYPE, read_result
from tests.support import eventually
from tests.unit.agent.scene import Faulty, Running, Scene, answers, failure_of


class Gated:
    """An agent whose handler waits to be told to end."""

    def __init__(self, *, slots: int = 4, opened: bool = False) -> None:
        self.gate = asyncio.Event()
        if opened:
            self.gate.set()
        self.started: list[str] = []
        self.agent = Agent("gated", slots=slots)

        @self.agent.capability("gate.pass", retry=Retry(max_attempts=1))
        async def wait(value: str, ctx: Context) -> str:
            self.started.append(value)
            await self.gate.wait()
            if value == "bad":
                raise ValueError(value)
            return value

    async def begun(self, scene: Scene) -> tuple[Running, Handle]:
        """The agent, which runs one task."""
        agent, client = await scene.start(self.agent), await scene.client()
        handle = await client.submit("gate.pass", "one")
        await eventually(lambda: self.started)
        return agent, handle


async def test_redelivered_work_in_flight_runs_once_and_is_answered(scene: Scene) -> None:
    gated = Gated()
    agent, handle = await gated.begun(scene)

    agent.broker.drop()
    await eventually(lambda: agent.broker.connected)
    gated.gate.set()

    assert await handle.result(str, timeout="100s") == "one"
    assert gated.started == ["one"]
    await agent.runtime.drain()
    await scene.acked("gate.pass")


async def test_redelivered_suspended_work_runs_once(scene: Scene) -> None:
    gated = Gated()
    heartbeats: list[int] = []
    asking = Agent("asking", slots=1)

    @asking.capability("ask.on")
    async def ask(number: int, ctx: Context) -> str:
        heartbeats.append(number)
        return str(await ctx.request("gate.pass", "child"))

    agent = await scene.start(asking)
    client = await scene.serve(gated.agent)
    handle = await client.submit("ask.on", 1)
    await eventually(lambda: gated.started)

    agent.broker.drop()
    await eventually(lambda: agent.broker.connected)
    gated.gate.set()

    assert await handle.result(str, timeout="100s") == "child"
    assert heartbeats == [1]
    await eventually(lambda: agent.runtime.load().suspended == 0)


async def test_broker_restart_while_many_run_and_end_repeats_and_loses_nothing(scene: Scene) -> None:
    gated = Gated(slots=10)
    agent = await scene.start(gated.agent)
    client = await scene.client()
    values = [str(number) for number in range(40)]
    handles = [await client.submit("gate.pass", value) for value in values]
    await eventually(lambda: len(gated.started) == 9)

    scene.server.stop()
    gated.gate.set()
    await eventually(lambda: agent.runtime.load().running == 0)
    scene.server.start()

    assert [await handle.result(str, timeout="100s") for handle in handles] == values
    assert sorted(gated.started) == sorted(values)


async def test_lost_confirm_of_a_reply_is_repeated_and_answered_once(scene: Scene) -> None:
    gated = Gated()
    _, handle = await gated.begun(scene)
    scene.server.lose_next_confirms(1)

    gated.gate.set()

    assert await handle.result(str, timeout="100s") == "one"
    assert gated.started == ["one"]
    await scene.acked("gate.pass")


async def test_task_is_acked_only_after_its_reply_is_confirmed(scene: Scene) -> None:
    gated = Gated()
    agent, _ = await gated.begun(scene)
    scene.server.block()
    gated.gate.set()
    await eventually(lambda: agent.runtime.load().running == 0)

    await agent.vanish()

    assert scene.ready_tasks("gate.pass") == 1, "no confirm, no ack"
    scene.server.unblock()


async def test_finished_work_is_answered_again_from_memory(scene: Scene) -> None:
    gated = Gated(opened=True)
    await scene.start(gated.agent)
    broker = await scene.broker()
    client = await scene.client()
    await client.submit("gate.pass", "warm")
    arrived = await answers(broker)
    task = Message(b'"twice"', message_id="same", reply_to="answers", type=TASK_TYPE)

    for _ in range(3):
        await broker.publish(task, exchange=routing.TASKS, routing_key="gate.pass.p1")
        await eventually(lambda: scene.ready_tasks("gate.pass") == 0)

    await eventually(lambda: len(arrived) == 3)
    assert [read_result(one.message).body for one in arrived] == [b'"twice"'] * 3
    assert gated.started.count("twice") == 1


async def test_duplicates_that_wait_together_run_once_and_are_all_answered(scene: Scene) -> None:
    gated = Gated(slots=1)
    agent = await scene.start(gated.agent)
    broker = await scene.broker()
    client = await scene.client()
    await client.submit("gate.pass", "first")
    await eventually(lambda: gated.started)
    arrived = await answers(broker)
    task = Message(b'"twice"', message_id="same", reply_to="answers", type=TASK_TYPE)
    for _ in range(5):
        await broker.publish(task, exchange=routing.TASKS, routing_key="gate.pass.p1")

    gated.gate.set()

    await eventually(lambda: len(arrived) == 5)
    assert gated.started == ["first", "twice"]
    await eventually(lambda: agent.runtime.load().running == 0)


async def test_failed_work_is_not_answered_from_memory(scene: Scene) -> None:
    gated = Gated(opened=True)
    client = await scene.serve(gated.agent)
    broker = await scene.broker()
    handle = await client.submit("gate.pass", "bad")
    await failure_of(handle)

    await broker.publish(
        Message(b'"good"', message_id=handle.task_id, type=TASK_TYPE),
        exchange=routing.TASKS,
        routing_key="gate.pass.p1",
    )

    await eventually(lambda: gated.started == ["bad", "good"])


async def test_reply_that_nobody_can_receive_is_counted_told_and_acked(scene: Scene) -> None:
    gated = Gated()
    agent = await scene.start(gated.agent)
    client = await scene.client()
    broker = await scene.broker()
    async with client.events("task.unclaimed") as events:
        await broker.publish(
            Message(b'"one"', message_id="lonely", reply_to="reply.nobody", type=TASK_TYPE),
            exchange=routing.TASKS,
            routing_key="gate.pass.p1",
        )
        gated.gate.set()
        event = await asyncio.wait_for(anext(events), 60)

    assert (event.subject, event.data["reply_to"]) == ("lonely", "reply.nobody")
    assert agent.runtime._outcomes.replies.unclaimed.value == 1
    await eventually(lambda: agent.runtime.load().running == 0)
    await scene.acked("gate.pass")


async def test_reply_queue_that_was_full_long_ago_is_waited_for_again() -> None:
    gated = Gated(opened=True)
    async with TestFleet(agents=[gated.agent]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        await stranger.declare(Topology(queues=(Queue("my.answers", QueueType.CLASSIC, max_length=1),)))

        async def fill() -> None:
            await stranger.publish(Message(b"{}"), exchange="", routing_key="my.answers")

        async def ask(task_id: str) -> None:
            task = Message(b'"x"', message_id=task_id, reply_to="my.answers", type=TASK_TYPE)
            await stranger.publish(task, exchange=routing.TASKS, routing_key="gate.pass.p1")

        async def taken() -> str | None:
            delivery = await stranger.get("my.answers")
            assert delivery is not None
            delivery.ack()
            return delivery.message.correlation_id

        await fill()
        await ask("dropped")
        await fleet.advance(2 * FULL_REPLIES_SECONDS)
        await taken()
        await ask("taken")
        await fleet.settled()
        assert await taken() == "taken"
        await fill()
        await ask("waits")
        await fleet.advance(FULL_REPLIES_SECONDS / 2)
        await taken()
        await fleet.advance(FULL_REPLIES_SECONDS / 2)

        assert await taken() == "waits"


async def test_alarm_that_outlasts_the_patience_drops_no_reply() -> None:
    gated = Gated()
    async with TestFleet(agents=[gated.agent]) as fleet:
        handles = [await fleet.submit("gate.pass", str(number)) for number in range(3)]
        await fleet.settled()
        fleet.server.block()
        gated.gate.set()
        await fleet.advance(10 * SETTLE_PUBLISH_SECONDS)

        fleet.server.unblock()

        assert [await handle.result(str) for handle in handles] == ["0", "1", "2"]
        assert sorted(gated.started) == ["0", "1", "2"]


async def test_publish_that_fails_while_settling_returns_the_task(scene: Scene) -> None:
    gated = Gated(opened=True)
    broker = Faulty(scene.server)
    broker.failures[routing.REPLIES] = [BrokerUnavailable("gone")]
    client = await scene.serve(gated.agent, broker=broker)

    handle = await client.submit("gate.pass", "one")

    assert await handle.result(str, timeout="100s") == "one"
    assert gated.started == ["one"], "the redelivery was answered from memory"


@pytest.mark.parametrize("exchange", [routing.REPLIES, routing.DEAD])
async def test_fault_of_the_runtime_is_an_attempt_that_is_told(
    scene: Scene, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    gated = Gated(opened=True)
    broker = Faulty(scene.server)
    broker.failures[exchange] = [RuntimeError("a bug")]
    agent = await scene.start(gated.agent, broker=broker)
    client = await scene.client()

    await failure_of(await client.submit("gate.pass", "bad"))

    assert gated.started == ["bad"]
    assert "The runtime failed on a task" in caplog.text
    await eventually(lambda: agent.runtime.load().running == 0)


async def test_capability_without_its_dead_queue_keeps_the_task(scene: Scene) -> None:
    gated = Gated(opened=True)
    client = await scene.serve(gated.agent)
    scene.server.delete_queue(routing.dead_queue("gate.pass"))

    await failure_of(await client.submit("gate.pass", "bad"))

    assert gated.started == ["bad"], "it is answered once and not run again and again"


async def test_unknown_and_unreadable_replies_are_ignored(scene: Scene) -> None:
    gated = Gated()
    agent, client, broker = await scene.start(gated.agent), await scene.client(), await scene.broker()
    handle = await client.submit("gate.pass", "one")
    for message in (Message(b"1", correlation_id="nobody"), Message(b"1")):
        await broker.publish(message, exchange=routing.REPLIES, routing_key=client._requests.reply_to)

    gated.gate.set()

    assert await handle.result(str, timeout="100s") == "one"
    assert client._requests.strays.value == 2
    assert agent.broker.connected
