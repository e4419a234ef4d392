"""Messages of strangers and of newer versions: only the reply that was asked for counts, and nothing is harmed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Agent, Context
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import reply_queue
from coditect.errors import InvalidTask
from coditect.model.ids import AgentId, TaskId, child_task_id
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import control_messages, routing, tasks
from coditect.wire.control_messages import LogLevelOrder
from coditect.wire.json import dumps, loads
from coditect.wire.routing import ANSWER_QUEUES, ReturnAddresses
from dispatcher.liveness.ping import PingAnswer, Pings
from tests.support import eventually
from tests.unit.agent.scene import Scene, answers, replies

ASKED = {"card": "4711"}


class Shop:
    """An agent that asks whether a card may be charged, and one that says whatever it is told to say."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.shop = Agent("shop", slots=4)
        self.bank = Agent("bank", slots=4)

        @self.shop.capability("order.place")
        async def place(_: Any, ctx: Context) -> str:
            return str(await ctx.request("card.charge", ASKED))

        @self.bank.capability("card.charge")
        async def charge(_: Any) -> str:
            await self.gate.wait()
            return "refused by policy"

        @self.bank.capability("text.echo")
        async def echo(said: Any) -> Any:
            return said


async def test_reply_in_the_name_of_a_child_or_of_a_task_counts_for_nothing() -> None:
    shop = Shop()
    async with (
        TestFleet(agents=[shop.shop, shop.bank]) as fleet,
        MemoryBroker(fleet.server, name="stranger") as stranger,
    ):
        order = await fleet.submit("order.place")
        await fleet.settled()
        agent, client = (f"reply.{name}" for name in ("agent.shop-1", "client-test"))
        child = child_task_id(order.task_id, "card.charge", dumps(ASKED), 1)
        guesses = [child, order.task_id, child_task_id(child, "card.charge", dumps(ASKED), 1), "", None]

        for reply_to in (agent, client):
            for guess in guesses:
                for message_id in (guess, None):
                    forged = Message(b'"PAID"', message_id=message_id, correlation_id=guess, reply_to=reply_to)
                    await stranger.publish(forged, exchange=routing.TASKS, routing_key="text.echo.p0")
                    await stranger.publish(forged, exchange=routing.TASKS, routing_key="nobody.offers.this.p0")
        await fleet.advance("1s")
        assert not order.done
        shop.gate.set()

        assert await order.result(str) == "refused by policy"


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.text(max_size=300),
        st.builds(
            "".join,
            st.lists(st.sampled_from(["reply.", "answers", ".", "tasks.", "dead.", "coditect.", "control", "x", "*"])),
        ),
    )
)
def test_no_return_address_is_a_queue_that_nobody_declared_for_it(reply_to: str) -> None:
    addresses = ReturnAddresses()

    address = addresses.find(reply_to)

    if address is None:
        if reply_to:
            with pytest.raises(InvalidTask, match="CODITECT_ANSWER_QUEUES"):
                addresses.check(reply_to)
    elif address.exchange:
        assert address.routing_key.startswith("reply.")
    else:
        addresses.check(reply_to)
        assert reply_to.startswith(("answers", "amq.")) or reply_to.endswith("answers")
        assert not reply_to.startswith(("tasks.", "dead.", "coditect.", "control."))
        assert ReturnAddresses("*").find(reply_to) == address


@pytest.mark.parametrize("name", ["answers", "wire.answers", "answers.crm", "amq.gen-x", "amq.rabbitmq.reply-to.g2"])
def test_names_that_speak_for_themselves_are_answered(name: str) -> None:
    assert ReturnAddresses().find(name) is not None
    assert (ReturnAddresses("crm-*, other").find(name) is None) is not name.startswith("amq.")


def test_no_pattern_opens_the_queues_of_the_system() -> None:
    for name in ("tasks.a.p1", "control", "unrouted", "dead.a", "results.0", "agent.a.mail"):
        assert ReturnAddresses(f"*, {ANSWER_QUEUES}, {name}").find(name) is None


@pytest.mark.parametrize("reply_to", ["ledger", "tasks.text.echo.p0", "answer", "events.x"])
async def test_task_that_wants_its_result_elsewhere_is_refused_before_it_runs(reply_to: str) -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.bank]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        written = await answers(stranger, "ledger")

        await stranger.publish(Message(b'"x"', reply_to=reply_to), exchange=routing.TASKS, routing_key="text.echo")
        await stranger.publish(Message(b'"x"', reply_to=reply_to), exchange=routing.TASKS, routing_key="no.body")
        await fleet.advance("5s")

        (letter,) = await fleet.dead_letters("text.echo")
        assert letter.reason == "invalid_task"
        assert letter.error is not None
        assert "reply_to" in letter.error.message
        assert "CODITECT_ANSWER_QUEUES" in letter.error.fix
        assert written == []
        assert not [event for event in fleet.events if event.type == "task.started"]


async def test_ping_is_answered_by_who_got_it_alone() -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.bank]) as fleet, MemoryBroker(fleet.server, name="pings") as broker:
        fleet.pause("bank-1")
        async with Pings(broker, name="pings") as pings:
            asked = asyncio.ensure_future(pings.ask(fleet.agents[0].id))
            await fleet.settled()

            for guess in [*map(str, range(50)), fleet.agents[0].id, TaskId("")]:
                pong = Message(b"{}", correlation_id=guess, type="coditect.pong.v1")
                await broker.publish(pong, exchange=routing.REPLIES, routing_key="reply.pings")

            assert await asked is PingAnswer.SILENCE


async def test_ping_that_wants_its_answer_elsewhere_gets_none() -> None:
    shop = Shop()
    async with TestFleet(agents=[shop.bank]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        written = await answers(stranger, "ledger")

        await stranger.publish(control_messages.ping(reply_to="ledger"), exchange=routing.BROADCAST, routing_key="")
        await fleet.settled()

        assert written == []


REPLIES = "reply.pings"


def newer(kind: str) -> str:
    return kind.removesuffix("v1") + "v2"


async def test_newer_or_strange_control_messages_do_nothing(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    finished, heard, agent = asyncio.Event(), list[str](), Agent("patient")

    @agent.capability("wait.long")
    async def wait(_: None) -> str:
        await finished.wait()
        return "finished"

    agent.on_broadcast("news")(heard.append)
    running = await scene.start(agent)
    handle = await scene.submit("wait.long")
    broker = await scene.broker()
    await broker.declare(reply_queue(REPLIES))
    arrived = await replies(broker, REPLIES)
    ping = control_messages.ping(reply_to=REPLIES, correlation_id="p")
    messages = [
        control_messages.cancel(handle.task_id),
        control_messages.log_level(LogLevelOrder("", "error")),
        control_messages.broadcast("news", "of another form"),
        control_messages.message(control_messages.HANDOFF, {}),
        control_messages.message(control_messages.BREAKER_NEWS, {}),
        control_messages.message(tasks.CREDIT, {}),
        control_messages.listen(),
        control_messages.message(control_messages.DRAIN),
        ping,
    ]
    strange = [Message(b"{", type="?"), control_messages.message(control_messages.CANCEL, [1])]
    key = routing.mailbox_key(AgentId(running.agent_id))

    for message in (*(replace(one, type=newer(str(one.type))) for one in messages), *strange, ping):
        await broker.publish(message, exchange=routing.AGENTS, routing_key=key)
    await eventually(lambda: arrived)
    (pong,) = arrived
    finished.set()

    assert loads(pong.message.body) == {"agent_id": running.agent_id, "status": "busy", "running": 1}
    assert (await handle.result(), heard) == ("finished", [])
    logged = [vars(one).get("message_type") for one in caplog.records]
    assert logged[: len(messages)] == [newer(str(one.type)) for one in messages]
