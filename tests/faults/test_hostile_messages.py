"""Hostile messages on a real broker that lets agents answer through their own exchange alone (403 for any other)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import uuid4

import pytest
from yarl import URL

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Queue, QueueType, Topology
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX
from tests.faults.node import Node
from tests.fleet import running
from tests.integration.wire.agent import Echo
from tests.servers import Servers
from tests.support import eventually, patient
from tests.unit.wire.hostile import nested

pytestmark = pytest.mark.servers

MANY = 40
LONG_HISTORIES = 6
ANSWERED_SECONDS = 1.0
USER = """\
{User, All, Who} = {<<"%s">>, <<".*">>, <<"tests">>},
ok = rabbit_auth_backend_internal:add_user(User, <<"secret">>, Who),
ok = rabbit_auth_backend_internal:set_permissions(User, <<"/">>, All, <<"^(?!amq\\\\.default$).*">>, All, Who).
"""
"""Makes a user who may publish by every exchange but the default one."""


@pytest.mark.timeout(120)
async def test_refused_answers_and_nested_histories_end_beside_a_fleets_own_work(node: Node, servers: Servers) -> None:
    user, echo = f"user-{uuid4().hex[:8]}", Echo(f"echo.{uuid4().hex[:8]}")
    await node.evaluate(USER % user)
    own = replace(servers, amqp_url=str(URL(node.url).with_user(user).with_password("secret")))
    answers = Queue(f"answers-{uuid4().hex}", QueueType.CLASSIC, expires_ms=60_000)
    async with AmqpBroker(node.url, name="stranger") as stranger, running(echo.agent(), own) as fleet:
        await stranger.declare(Topology(queues=(answers,)))
        closed = fleet.agents_broker

        for number in range(MANY):
            headers = (
                {HEADER_PREFIX + "errors": nested(400)}
                if number % 2
                else {HEADER_PREFIX + "workflow": "w", HEADER_PREFIX + "node": "n"}
            )
            body = b'{"fail": true}' if number % 2 else b'{"say": "x"}'
            reply_to = answers.name if number % 4 else None
            message = Message(body, headers, message_id=f"h-{number}", reply_to=reply_to)
            await stranger.publish(message, exchange=routing.TASKS, routing_key=echo.capability)
        handles = [await fleet.client.submit(echo.capability, {"say": str(number)}) for number in range(MANY)]

        for handle in handles:
            await handle.result(timeout="30s")
        for level in Priority:
            await eventually(lambda level=level: fleet.drained(routing.task_queue(echo.capability, level)))  # type: ignore[misc]
        dead = routing.dead_queue(echo.capability)
        buried = MANY // 2 + MANY // 4  # what failed, and what named an owner and nobody to answer
        await eventually(lambda: fleet.holds(dead, buried), seconds=30)
        await eventually(lambda: fleet.runtime.load().running == 0)

        letters = await fleet.letters(dead)
        assert {letter.reason for letter in letters} == {"handler_error", "no_owner"}
        assert closed.connected
        assert await fleet.holds(answers.name, 0), "the permissions let nobody be answered there"


async def test_quick_request_is_answered_in_time_beside_long_histories(servers: Servers) -> None:
    """Each failure writes its history again, on the loop that also serves the request."""
    echo = Echo(f"echo.{uuid4().hex[:8]}")
    headers = {HEADER_PREFIX + "errors": "[" + ",".join(['{"type":"E"}'] * 2_500) + "]"}
    assert 32_000 < len(headers[HEADER_PREFIX + "errors"]) < 32_768
    async with AmqpBroker(servers.amqp_url, name="stranger") as stranger, running(echo.agent(), servers) as fleet:
        await fleet.client.request(echo.capability, {"say": "warm"}, timeout="30s")
        await asyncio.gather(*[
            stranger.publish(Message(b'{"fail": true}', headers), exchange=routing.TASKS, routing_key=echo.capability)
            for _ in range(LONG_HISTORIES)
        ])  # fmt: skip

        began = asyncio.get_running_loop().time()
        await fleet.client.request(echo.capability, {"say": "quick"}, timeout="30s")
        took = asyncio.get_running_loop().time() - began

        assert took < patient(ANSWERED_SECONDS), f"{took:.2f} s"
        await eventually(lambda: fleet.holds(routing.dead_queue(echo.capability), LONG_HISTORIES))
        assert echo.started.count("nothing") == 2 * LONG_HISTORIES, "each was tried, and tried again"
