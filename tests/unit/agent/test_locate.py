"""Where a task is: agents are asked what they run, and the queues are searched."""

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
from coditect.operations.locate import ask_agents, locate_task
from coditect.telemetry.metrics import QUEUE_WAIT
from coditect.wire import control_messages, routing
from tests.unit.agent.scene import Scene

CAPABILITY = "slow.work"


@pytest.fixture
def quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.operations.locate.PING_ANSWER_SECONDS", 0.2)


@pytest.mark.usefixtures("quick_answers")
async def test_broker_that_no_agent_ever_used_is_searched_all_the_same() -> None:
    async with MemoryBroker(MemoryServer(), name="person") as broker:
        found = await locate_task(broker, "nowhere", waiting=[CAPABILITY], dead=[CAPABILITY], most=10)

    assert (found.locations, found.asked, found.looked) == ((), 0, ())


@pytest.mark.usefixtures("quick_answers")
@pytest.mark.parametrize("agents", [0, 3])
async def test_agents_are_asked_and_no_queue_is_left(
    scene: Scene, agents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.operations.locate.token_hex", lambda length: "known")
    await scene.client()  # declares what every process needs
    for _ in range(agents):
        await scene.start(Agent("other"))

    found = await locate_task(await scene.broker(), "nowhere", waiting=(), dead=(), most=10)

    assert (found.locations, found.asked, "unrouted" in found.looked) == ((), agents, True)
    assert scene.server.find("reply.question-known") is None


@pytest.mark.usefixtures("quick_answers")
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
    found = await locate_task(await scene.broker(), "nowhere", waiting=(), dead=(), most=10)

    assert len(answers) == 1
    assert all(seen.capability is None and seen.priority is None for seen in found.locations)


@pytest.mark.usefixtures("quick_answers")
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
        await locate_task(broker, "nowhere", waiting=(), dead=(), most=10)

    assert scene.server.find("reply.question-known") is None


async def test_an_agent_names_the_tasks_that_it_runs(scene: Scene) -> None:
    started = asyncio.Event()
    agent = Agent("slow", slots=2)

    @agent.capability("slow.work")
    async def work(_: object) -> None:
        started.set()
        await asyncio.sleep(60)

    busy = await scene.start(agent)
    idle = await scene.start(Agent("other"))
    handle = await scene.submit("slow.work", options=Options(priority=Priority.P0))
    await started.wait()

    ping = control_messages.ping(reply_to="", tasks=True)
    answers = await ask_agents(await scene.broker(), ping, enough=lambda heard: len(heard) == 2)

    told = {answer["agent_id"]: answer["tasks"] for answer in answers}
    (task,) = told[busy.agent_id]
    assert told[idle.agent_id] == []
    assert (task["task_id"], task["capability"], task["priority"]) == (handle.task_id, "slow.work", "p0")
    assert (task["attempt"], task["workflow"]) == (1, None)


async def test_an_agent_that_is_asked_for_nothing_names_no_tasks(scene: Scene) -> None:
    await scene.start(Agent("other"))

    ping = control_messages.ping(reply_to="")
    (answer,) = await ask_agents(await scene.broker(), ping, enough=bool)

    assert "tasks" not in answer
    assert "metrics" not in answer


async def test_an_agent_gives_the_totals_of_the_metrics_that_a_ping_names(scene: Scene) -> None:
    agent = Agent("quick")

    @agent.capability("quick.work")
    async def work(_: object) -> None:
        """Do nothing."""

    client = await scene.serve(agent)
    await client.request("quick.work")

    ping = control_messages.ping(reply_to="", metrics=[QUEUE_WAIT.name, "coditect_unknown"])
    (answer,) = await ask_agents(await scene.broker(), ping, enough=bool)

    assert answer["metrics"].keys() == {QUEUE_WAIT.name}
    assert sum(answer["metrics"][QUEUE_WAIT.name]["counts"]) == 1
