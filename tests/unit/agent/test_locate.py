from __future__ import annotations

import asyncio

import pytest

from coditect import Agent
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import agent_queues, base_topology
from coditect.errors import CoditectError, NotFound, Overloaded
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.operations.locate import TaskLocator
from coditect.wire import routing
from tests.unit.agent.scene import Scene

CAPABILITY = "slow.work"


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.operations.locate.PING_ANSWER_SECONDS", 0.2)


async def test_broker_that_no_agent_ever_used_is_searched_all_the_same() -> None:
    async with MemoryBroker(MemoryServer(), name="person") as broker:
        found = await TaskLocator(broker).find("nowhere", waiting=[CAPABILITY], dead=[CAPABILITY], most=10)

    assert (found.locations, found.asked, found.looked) == ((), 0, ())


@pytest.mark.parametrize("agents", [0, 3])
async def test_every_agent_is_asked_and_no_queue_is_left_behind(
    scene: Scene, agents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.operations.locate.token_hex", lambda length: "known")
    await scene.client()  # declares what every process needs
    for _ in range(agents):
        await scene.start(Agent("other"))

    found = await TaskLocator(await scene.broker()).find("nowhere", waiting=(), dead=(), most=10)

    assert (found.locations, found.asked, "unrouted" in found.looked) == ((), agents, True)
    assert scene.server.find("reply.question-known") is None


@pytest.mark.parametrize("body", [b"{", b"7", b"{}", b'{"task": true}', b'{"task": {"capability": 7, "priority": []}}'])
async def test_strange_answers_do_no_harm(scene: Scene, body: bytes) -> None:
    stranger = await scene.broker()
    await stranger.declare(base_topology() + agent_queues(AgentId("stranger-1"), slots=1))

    def answer(delivery: Delivery) -> None:
        delivery.ack()
        message, key = Message(body=body), delivery.message.reply_to or ""
        answers.append(asyncio.ensure_future(stranger.publish(message, exchange=routing.REPLIES, routing_key=key)))

    answers: list[asyncio.Future[None]] = []
    await stranger.consume(routing.mailbox_queue(AgentId("stranger-1")), answer, prefetch=1)
    found = await TaskLocator(await scene.broker()).find("nowhere", waiting=(), dead=(), most=10)

    assert len(answers) == 1
    assert all(seen.capability is None and seen.priority is None for seen in found.locations)


@pytest.mark.parametrize(
    ("step", "error"), [("publish", Overloaded("The broker refuses more")), ("consume", NotFound("It is gone"))]
)
async def test_question_that_cannot_be_put_is_told_and_leaves_no_queue_behind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str, error: CoditectError
) -> None:
    monkeypatch.setattr("coditect.operations.locate.token_hex", lambda length: "known")
    await scene.start(Agent("other"))
    broker = await scene.broker()

    async def refuse(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(broker, step, refuse)

    with pytest.raises(type(error)):
        await TaskLocator(broker).find("nowhere", waiting=(), dead=(), most=10)

    assert scene.server.find("reply.question-known") is None
