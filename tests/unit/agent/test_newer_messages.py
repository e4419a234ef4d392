"""Control messages of a version that the agent does not know: it names them in its log, and does nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coditect import Agent
from coditect.broker.topology import reply_queue
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import control_messages, routing, tasks
from coditect.wire.control_messages import LogLevelOrder
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.scene import Scene, replies

REPLIES = "reply.pings"


def newer(kind: str) -> str:
    return kind.removesuffix("v1") + "v2"


async def test_control_messages_that_are_newer_or_strange_are_logged_or_ignored_and_do_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    finished, heard, agent = asyncio.Event(), list[str](), Agent("patient")

    @agent.capability("wait.long")
    async def wait(_: None) -> str:
        await finished.wait()
        return "finished"

    agent.on_broadcast("news")(heard.append)
    running = await scene.start(agent)
    handle = await (await scene.client()).submit("wait.long")
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
