from __future__ import annotations

import asyncio

import pytest

from coditect import Agent, Options, Priority
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Delivery
from coditect.broker.topology import agent_queues, base_topology
from coditect.errors import CoditectError, NotFound, Overloaded
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.operations.diagnosis.locate import TaskLocator
from coditect.operations.diagnosis.locations import TaskPlace
from coditect.wire import routing
from tests.unit.agent.scene import Scene

CAPABILITY = "slow.work"


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.operations.diagnosis.question.ANSWER_SECONDS", 0.2)


def slow(started: asyncio.Event, *, slots: int = 1) -> Agent:
    agent = Agent("slow", slots=slots)

    @agent.capability(CAPABILITY)
    async def work(_: object) -> None:
        started.set()
        await asyncio.sleep(60)

    return agent


async def test_agent_says_that_it_works_on_a_task(scene: Scene) -> None:
    started = asyncio.Event()
    agent = await scene.start(slow(started))
    await scene.start(Agent("other"))
    client = await scene.client()
    handle = await client.submit(CAPABILITY, options=Options(priority=Priority.P0))
    await started.wait()

    found = await TaskLocator(await scene.broker()).find(handle.task_id, waiting=(), dead=(), most=10)

    (seen,) = found.locations
    assert (seen.place, seen.agent_id, seen.capability) == (TaskPlace.WORKING, agent.agent_id, CAPABILITY)
    assert seen.priority is Priority.P0


async def test_broker_that_no_agent_ever_used_is_searched_all_the_same() -> None:
    async with MemoryBroker(MemoryServer(), name="person") as broker:
        found = await TaskLocator(broker).find("nowhere", waiting=[CAPABILITY], dead=[CAPABILITY], most=10)

    assert (found.locations, found.asked, found.looked) == ((), 0, ())


async def test_every_agent_is_asked_and_none_has_it(scene: Scene) -> None:
    for _ in range(3):
        await scene.start(Agent("other"))

    found = await TaskLocator(await scene.broker()).find("nowhere", waiting=(), dead=(), most=10)

    assert (found.locations, found.asked) == ((), 3)
    assert "unrouted" in found.looked


async def test_nobody_is_there_to_be_asked(scene: Scene) -> None:
    await scene.client()  # declares what every process needs

    found = await TaskLocator(await scene.broker()).find("nowhere", waiting=(), dead=(), most=10)

    assert (found.locations, found.asked) == ((), 0)


async def test_looking_leaves_no_queue_behind(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.operations.diagnosis.question.token_hex", lambda length: "known")
    await scene.start(Agent("other"))

    found = await TaskLocator(await scene.broker()).find("nowhere", waiting=(), dead=(), most=10)

    assert found.asked == 1
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
    monkeypatch.setattr("coditect.operations.diagnosis.question.token_hex", lambda length: "known")
    await scene.start(Agent("other"))
    broker = await scene.broker()

    async def refuse(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(broker, step, refuse)

    with pytest.raises(type(error)):
        await TaskLocator(broker).find("nowhere", waiting=(), dead=(), most=10)

    assert scene.server.find("reply.question-known") is None
