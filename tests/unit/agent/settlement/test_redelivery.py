"""Connections and brokers that go away while work is in hand, tasks that come twice, and what cannot be settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Handle, Retry
from coditect.agent import settlement
from coditect.agent.outcomes import FULL_REPLIES_SECONDS
from coditect.agent.settlement import SETTLE_PUBLISH_SECONDS, Settler
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.errors import BrokerUnavailable, InputError, NotFound, SetupError
from coditect.model.message import Message
from coditect.testing import FleetCrashed, TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX
from coditect.wire.json import loads
from coditect.wire.routing import REFUSED_SECONDS
from coditect.wire.tasks import TASK_TYPE
from tests.support import eventually
from tests.unit.agent.scene import Faulty, Running, Scene, answers, failure_of, replies


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
    values = [str(number) for number in range(40)]
    handles = [await scene.submit("gate.pass", value) for value in values]
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


async def test_duplicates_that_wait_together_run_once_and_are_all_answered(scene: Scene) -> None:
    gated = Gated(slots=1)
    agent = await scene.start(gated.agent)
    broker = await scene.broker()
    await scene.submit("gate.pass", "first")
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
async def test_runtime_fault_is_an_attempt(scene: Scene, exchange: str, caplog: pytest.LogCaptureFixture) -> None:
    gated = Gated(opened=True)
    broker = Faulty(scene.server)
    broker.failures[exchange] = [RuntimeError("a bug")]
    agent = await scene.start(gated.agent, broker=broker)

    await failure_of(await scene.submit("gate.pass", "bad"))

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


ANSWERS = "answers"


class Tries:
    """An agent that counts its runs and fails as it is told."""

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.error: Exception | None = ValueError("on purpose")
        self.agent = Agent("tries", slots=2)

        @self.agent.capability("try.it", retry=Retry(max_attempts=3))
        async def attempt(_: Any, ctx: Any = None) -> str:
            self.attempts.append(len(self.attempts) + 1)
            if self.error is not None:
                raise self.error
            return "done"


@asynccontextmanager
async def open_fleet(tries: Tries) -> AsyncIterator[tuple[TestFleet, MemoryBroker]]:
    """The agent, and a stranger with a queue for answers."""
    async with TestFleet(agents=[tries.agent]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        await stranger.declare(Topology(queues=(Queue(ANSWERS, QueueType.CLASSIC),)))
        yield fleet, stranger


async def publish(stranger: MemoryBroker, body: bytes = b"1", **how: Any) -> None:
    headers = {HEADER_PREFIX + name: value for name, value in how.pop("headers", {}).items()}
    await stranger.publish(Message(body, headers, **how), exchange=routing.TASKS, routing_key="try.it.p1")


@pytest.mark.parametrize("levels", [254, 400, 1_000])
async def test_history_that_could_not_be_written_again_costs_no_attempt(levels: int) -> None:
    tries = Tries()
    async with open_fleet(tries) as (fleet, stranger):
        arrived = await replies(stranger, ANSWERS)
        errors = '[{"type":"E","message":' + "[" * levels + "]" * levels + "}]"

        await publish(stranger, headers={"errors": errors}, reply_to=ANSWERS)
        await fleet.advance("5m")

        (letter,) = await fleet.dead_letters("try.it")
        assert len(tries.attempts) == 3
        assert (letter.reason, letter.attempts, len(letter.errors)) == ("handler_error", 3, 4)
        assert [one.message.headers[HEADER_PREFIX + "status"] for one in arrived] == ["failed"]


async def test_reply_that_the_permissions_refuse_is_dropped_and_not_tried_for_others() -> None:
    tries = Tries()
    tries.error = None
    async with open_fleet(tries) as (fleet, stranger):
        fleet.server.forbid("")

        for number in range(20):
            await publish(stranger, reply_to=ANSWERS, message_id=f"foreign-{number}")
        handles = [await fleet.submit("try.it", number) for number in range(20)]
        assert [await handle.result(str) for handle in handles] == ["done"] * 20
        await fleet.advance("30s")

        assert len(tries.attempts) == 40, "each ran once"
        assert fleet.server.refusals[""] <= 4, "those that were under way at once"
        assert await fleet.dead_letters("try.it") == ()

        await fleet.advance(REFUSED_SECONDS)
        await publish(stranger, reply_to=ANSWERS)
        await fleet.settled()
        assert fleet.server.refusals[""] <= 5, "it is tried again in a minute"


@pytest.mark.parametrize(
    ("part", "runs"), [("coditect.agent.runtime.limit_seconds", 0), ("coditect.agent.outcomes.Replies.post", 3)]
)
async def test_runtime_fault_is_counted_and_answered(part: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = Tries()
    tries.error = None

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(part, broken)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, _):
            failure = await failure_of(await fleet.submit("try.it"), "1h")

            (letter,) = await fleet.dead_letters("try.it")
            assert (failure.reason, letter.attempts, len(tries.attempts)) == ("not_settled", 3, runs)
            assert "a bug" in failure.message


@pytest.mark.parametrize("kind", [NotFound, SetupError])
async def test_missing_exchange_ends_as_a_dead_letter(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    tries, returned = Tries(), []

    async def refused(*_: object, **__: object) -> None:
        returned.append(asyncio.get_running_loop().time())
        raise kind("There is no such exchange")

    monkeypatch.setattr(Settler, "send_to", refused)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, stranger):
            arrived = await replies(stranger, ANSWERS)

            await publish(stranger, reply_to=ANSWERS)
            await fleet.advance("1h")

            pauses = [later - earlier for earlier, later in pairwise(returned)]
            (letter,) = await fleet.dead_letters("try.it")
            assert len(tries.attempts) == settlement.MOST_RETURNS + 1
            assert pauses == sorted(pauses)
            assert pauses[-1] >= settlement.RETURNS.longest > 10 * pauses[0]
            assert letter.reason == "rejected"
            assert len(arrived) == 1


async def test_message_that_cannot_even_be_buried_is_rejected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = Tries()

    async def unspeakable(*_: object, **__: object) -> None:
        raise InputError("AMQP cannot carry a property or header")

    monkeypatch.setattr(Settler, "bury", unspeakable)
    with pytest.raises(FleetCrashed):
        async with open_fleet(tries) as (fleet, stranger):
            arrived = await replies(stranger, ANSWERS)

            await publish(stranger, type="something else", reply_to=ANSWERS)
            await publish(stranger, reply_to=ANSWERS, headers={"max-attempts": 1})
            await fleet.advance("5m")

            letters = await fleet.dead_letters("try.it")
            assert [letter.reason for letter in letters] == ["rejected", "rejected"]
            assert len(arrived) == 2
            assert len(tries.attempts) == 1


def _prices(asked: list[str]) -> Agent:
    agent = Agent("prices", slots=4)

    @agent.capability("price.of")
    async def price(name: str) -> str:
        asked.append(name)
        return f"price of {name}"

    @agent.capability("stock.of")
    async def stock(name: str) -> str:
        asked.append(name)
        return f"stock of {name}"

    return agent


@settings(max_examples=10, deadline=None)
@given(
    tasks=st.lists(st.tuples(st.sampled_from(["price", "stock"]), st.sampled_from("ab"), st.booleans()), max_size=8),
)
@example(tasks=[("price", "a", True)] * 3)
def test_each_publisher_gets_the_answer_to_its_own_question(tasks: list[tuple[str, str, bool]]) -> None:
    asyncio.run(_asked(tasks))


async def _asked(tasks: list[tuple[str, str, bool]]) -> None:
    ran: list[str] = []
    async with TestFleet(agents=[_prices(ran)]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        arrived = await answers(stranger)
        for number, (what, name, waits) in enumerate(tasks):
            message = Message(f'"{name}"'.encode(), message_id="same", correlation_id=str(number), reply_to="answers")
            await stranger.publish(message, exchange=routing.TASKS, routing_key=f"{what}.of.p1")
            if waits:
                await fleet.settled()
        await fleet.settled()

        told = {one.message.correlation_id: loads(one.message.body) for one in arrived}
        assert told == {str(number): f"{what} of {name}" for number, (what, name, _) in enumerate(tasks)}
        assert len(ran) == len({(what, name) for what, name, _ in tasks}), "the same question is answered from memory"


@settings(max_examples=10, deadline=None)
@given(first=st.permutations("aabbc"), second=st.permutations("aabbc"))
def test_parent_that_asks_again_in_another_order_gets_what_it_asks_for(first: list[str], second: list[str]) -> None:
    asyncio.run(_asked_again([first, second]))


async def _asked_again(orders: list[list[str]]) -> None:
    ran: list[str] = []
    got: list[tuple[str, Any]] = []
    parent = Agent("parent")

    @parent.capability("ask.all", retry=Retry(max_attempts=2, first="100ms"))
    async def ask(_: None, ctx: Context) -> None:
        for name in orders[ctx.attempt - 1]:
            got.append((name, await ctx.request("price.of", name)))
        if ctx.attempt == 1:
            raise ValueError("again")

    async with TestFleet(agents=[parent, _prices(ran)]) as fleet:
        handle = await fleet.submit("ask.all")
        await handle.result(timeout="1m")

        assert got == [(name, f"price of {name}") for order in orders for name in order]
        assert len(ran) == 5, "the second attempt finds the children of the first"
