from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress

import pytest

from coditect import Agent, Context
from coditect.agent.program import STOPPED, _canceled_by_signals
from coditect.broker.memory import MemoryBroker
from coditect.broker.memory.broker import MemoryConsumer
from coditect.broker.port import Delivery
from coditect.errors import SetupError, Unroutable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import AgentStatus
from coditect.registry.port import Search
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import control_messages, routing
from tests.support import eventually
from tests.unit.agent.scene import Scene


def gated(gate: asyncio.Event, started: list[int], *, slots: int = 2) -> Agent:
    agent = Agent("gated", slots=slots)

    @agent.capability("gate.pass")
    async def wait(number: int) -> int:
        started.append(number)
        await gate.wait()
        return number

    return agent


def stubborn(started: asyncio.Event, gate: asyncio.Event) -> Agent:
    """An agent whose handler ignores cancellations until the gate opens, and then fails; its next run is done."""
    agent = Agent("stubborn")

    @agent.capability("be.stubborn")
    async def stay(_: None) -> str:
        if gate.is_set():
            return "done elsewhere"
        started.set()
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        raise SetupError("The client is closed")

    return agent


async def test_signal_before_the_agent_is_ready_counts_whatever_its_start_makes_of_the_cancellation() -> None:
    async def start() -> None:
        with _canceled_by_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                assert stop.is_set()
                raise asyncio.CancelledError from None

    starting = asyncio.create_task(start())
    await asyncio.wait([starting])

    with pytest.raises(asyncio.CancelledError) as ended:
        starting.result()
    assert ended.value.args == (STOPPED,)


async def test_drain_finishes_what_runs_and_returns_the_rest(scene: Scene) -> None:
    gate, started = asyncio.Event(), list[int]()
    agent = await scene.start(gated(gate, started, slots=1), drain_seconds=5)
    agent_id = AgentId(agent.agent_id)
    handles = [await scene.submit("gate.pass", number) for number in range(3)]
    await eventually(lambda: started)

    async def draining() -> bool:
        record = await scene.registry.get(agent_id)
        return record is not None and record.load.status is AgentStatus.DRAINING

    stopping = asyncio.ensure_future(agent.stop())
    await eventually(lambda: scene.ready_tasks("gate.pass") == 2)
    await eventually(draining)
    assert scene.server.find(routing.mailbox_queue(agent_id)) is not None
    gate.set()
    await stopping

    assert started == [0]
    assert await handles[0].result(int, timeout="1s") == 0
    assert scene.ready_tasks("gate.pass") == 2


async def test_task_that_comes_as_consumers_close_goes_back_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel, canceled = MemoryConsumer.cancel, list[str]()

    async def on_a_busy_machine(consumer: MemoryConsumer) -> None:
        canceled.append(consumer.queue)
        await asyncio.sleep(0.05)
        await cancel(consumer)

    monkeypatch.setattr(MemoryConsumer, "cancel", on_a_busy_machine)
    agent = await scene.start(gated(asyncio.Event(), []))

    stopping = asyncio.ensure_future(agent.stop())
    await eventually(lambda: canceled)
    await scene.submit("gate.pass", 1, priority="p2")  # whose consumer is canceled at the same time, or later
    await stopping

    async with MemoryBroker(scene.server, name="any") as broker:
        delivery = await broker.get(routing.task_queue("gate.pass", Priority.P2))
    assert scene.ready(routing.dead_queue("gate.pass")) == 0
    assert delivery is not None
    assert delivery.delivery_count == 1  # each return counts, and a queue gives up a task at its limit


async def test_task_fetched_as_the_drain_begins_goes_back_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    get, gets = MemoryBroker.get, list[str]()

    async def under_way(broker: MemoryBroker, queue: str) -> Delivery | None:
        gets.append(queue)
        await asyncio.sleep(0.02)
        return await get(broker, queue)

    first, started, agent = asyncio.Event(), list[int](), Agent("two", slots=2, reserve=0)

    @agent.capability("gate.pass")
    async def wait(number: int) -> None:
        started.append(number)
        await (first if number == started[0] else asyncio.Event()).wait()

    running = await scene.start(agent, drain_seconds=0.5)
    for number in range(6):
        await scene.submit("gate.pass", number, priority=["p1", "p2"][number % 2])
    await eventually(lambda: len(started) == 2 and scene.ready_tasks("gate.pass") == 4)

    monkeypatch.setattr(MemoryBroker, "get", under_way)
    first.set()  # the slot that is free now fetches a task, while another one keeps the agent
    await eventually(lambda: gets)
    await running.stop()

    assert len(gets) == 1


async def test_drained_agent_is_deregistered_its_queues_are_gone_and_its_inbox_gets_nothing_more(scene: Scene) -> None:
    agent = await scene.start(gated(asyncio.Event(), []))
    agent_id = AgentId(agent.agent_id)
    assert await scene.registry.get(agent_id) is not None

    await agent.stop()

    assert await scene.registry.find(Search()) == ()
    for queue in (routing.next_queue(agent_id), routing.mailbox_queue(agent_id), routing.agent_replies(agent_id)):
        assert scene.server.find(queue) is None
    async with MemoryBroker(scene.server, name="any") as broker:
        with pytest.raises(Unroutable):
            await broker.publish(Message(body=b"{}"), exchange=routing.AGENTS, routing_key=agent_id)


async def test_drain_that_takes_too_long_returns_what_still_runs() -> None:
    gate, started = asyncio.Event(), list[int]()
    async with TestFleet(agents=[gated(gate, started)], settings=Settings(drain_seconds=300)) as fleet:
        handles = [await fleet.submit("gate.pass", number) for number in range(2)]
        await fleet.settled()

        await fleet.drain("gated")
        assert fleet.elapsed_seconds == 300
        gate.set()
        await fleet.restart("gated")

        assert [await handle.result(int) for handle in handles] == [0, 1]
        assert sorted(started) == [0, 0, 1]


async def test_handler_that_outlasts_the_drain_holds_up_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may fail only because its agent goes, as by a closed client; the task is another agent's by then."""
    monkeypatch.setattr("coditect.agent.runtime.RETURN_SECONDS", 0.1)
    started, gate = asyncio.Event(), asyncio.Event()
    agent = stubborn(started, gate)
    running = await scene.start(agent, drain_seconds=0.1)
    handle = await scene.submit("be.stubborn")
    await started.wait()
    await asyncio.wait_for(running.runtime.drain(), 60)
    assert scene.ready_tasks("be.stubborn") == 1
    gate.set()
    await scene.start(agent)

    assert await handle.result(str, timeout="10s") == "done elsewhere"


async def test_task_whose_handler_fails_because_its_agent_closes_what_it_waits_for_goes_back(scene: Scene) -> None:
    started, gate = asyncio.Event(), asyncio.Event()
    agent = stubborn(started, gate)
    running = await scene.start(agent, drain_seconds=5)
    handle = await scene.submit("be.stubborn")
    await started.wait()
    stopping = asyncio.ensure_future(running.stop())
    await eventually(lambda: running.runtime.load().status is AgentStatus.DRAINING)
    gate.set()
    await stopping
    await scene.start(agent)

    assert await handle.result(str, timeout="10s") == "done elsewhere"


async def test_thread_that_never_ends_holds_up_no_drain(scene: Scene) -> None:
    started, gate = threading.Event(), threading.Event()
    agent = Agent("stubborn")

    @agent.capability("be.stubborn")
    def stay(_: None) -> None:
        started.set()
        gate.wait(10)

    running = await scene.start(agent, drain_seconds=0.1)
    await scene.submit("be.stubborn")
    await eventually(started.is_set)

    await asyncio.wait_for(running.stop(), 60)

    assert scene.ready_tasks("be.stubborn") == 1
    gate.set()


async def test_suspended_task_is_awaited_by_a_drain(scene: Scene) -> None:
    gate, started = asyncio.Event(), list[int]()
    asking = Agent("asking", slots=1)

    @asking.capability("ask.on")
    async def ask(number: int, ctx: Context) -> int:
        return int(await ctx.request("gate.pass", number))

    agent = await scene.start(asking, drain_seconds=5)
    client = await scene.serve(gated(gate, started))
    handle = await client.submit("ask.on", 5)
    await eventually(lambda: started)

    stopping = asyncio.ensure_future(agent.stop())
    await eventually(lambda: agent.runtime.load().status is AgentStatus.DRAINING)
    gate.set()
    await stopping

    assert await handle.result(int, timeout="1s") == 5


async def test_control_message_asks_for_the_drain(scene: Scene) -> None:
    agent = await scene.start(gated(asyncio.Event(), []))
    broker = await scene.broker()

    await broker.publish(
        control_messages.message(control_messages.DRAIN),
        exchange=routing.AGENTS,
        routing_key=routing.mailbox_key(AgentId(agent.agent_id)),
    )

    await eventually(agent.drain.is_set)
    mailbox = scene.server.queue(routing.mailbox_queue(AgentId(agent.agent_id)))
    await eventually(lambda: mailbox.stats.messages + mailbox.in_hand == 0)


async def test_drain_message_to_everybody_ends_nobody(scene: Scene) -> None:
    gate, started = asyncio.Event(), list[int]()
    gate.set()
    agent = await scene.start(gated(gate, started))
    broker, client = await scene.broker(), await scene.client()

    await broker.publish(control_messages.message(control_messages.DRAIN), exchange=routing.BROADCAST, routing_key="")

    assert await (await client.submit("gate.pass", 1)).result(timeout="100s") == 1
    assert not agent.drain.is_set()
