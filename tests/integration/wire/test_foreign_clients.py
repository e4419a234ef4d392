"""Clients without our library: an exchange, a key and a JSON body get work done, and any return address an answer."""

from __future__ import annotations

import json
import shutil
from uuid import uuid4

import pytest

from coditect.settings.settings import Settings
from tests.fleet import Running, running
from tests.integration.wire import foreign
from tests.integration.wire.agent import Echo
from tests.integration.wire.foreign import blocking
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers
amqp_tools = pytest.mark.skipif(shutil.which("amqp-publish") is None, reason="amqp-tools are not installed")


@amqp_tools
async def test_amqp_publish_of_a_bare_body_is_answered_to_amqp_consume(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    answers = f"answers-{uuid4().hex}"
    await blocking(foreign.tool, "amqp-declare-queue", "-u", amqp_url, "-d", "-q", answers)

    await blocking(
        foreign.tool,
        *("amqp-publish", "-u", amqp_url, "-e", "coditect.tasks", "-r", f"{echo.capability}.p0"),
        *("-b", '{"say": "hello"}', f"--reply-to={answers}"),
    )

    answer = await blocking(foreign.tool, "amqp-consume", "-u", amqp_url, "-q", answers, "-c", "1", "cat")
    assert json.loads(answer) == {"said": "hello", "priority": "p0"}
    await blocking(foreign.tool, "amqp-delete-queue", "-u", amqp_url, "-q", answers)


@amqp_tools
async def test_limits_sent_as_text_by_amqp_publish_are_kept(fleet: Running, echo: Echo, amqp_url: str) -> None:
    header = ("-H", "x-coditect-timeout-ms: 50", "-H", "x-coditect-max-attempts: 1")
    command = ("amqp-publish", "-u", amqp_url, "-e", "coditect.tasks", "-r", echo.capability, *header)

    await blocking(foreign.tool, *command, stdin=b'{"wait": true}')

    await eventually(lambda: fleet.holds(f"dead.{echo.capability}", 1))
    (letter,) = await fleet.letters(f"dead.{echo.capability}")
    assert letter.reason == "timeout"
    assert fleet.runtime.load().failed == 1


async def test_pika_is_answered_through_an_exclusive_queue_that_the_broker_named(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    answer = await blocking(foreign.ask, amqp_url, f"{echo.capability}.p2", b'{"say": "hi"}')

    assert json.loads(answer.body) == {"said": "hi", "priority": "p2"}
    assert (answer.status, answer.type) == ("completed", "coditect.result.v1")
    assert answer.headers["x-coditect-agent"] == fleet.runtime.agent_id


async def test_pika_is_answered_through_direct_reply_to_also_after_a_retry(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    answer = await blocking(foreign.ask_directly, amqp_url, f"{echo.capability}.p1", b'{"say": "hi"}')
    failed = await blocking(foreign.ask_directly, amqp_url, f"{echo.capability}.p1", b'{"fail": true}')

    assert json.loads(answer.body)["said"] == "hi"
    assert (failed.status, failed.headers["x-coditect-attempt"]) == ("failed", 2)


async def test_pika_is_answered_through_the_exchange_for_replies(fleet: Running, echo: Echo, amqp_url: str) -> None:
    name = f"reply.{uuid4().hex}"

    answer = await blocking(foreign.ask_through_replies, amqp_url, echo.capability, b'{"say": "hi"}', name)

    assert json.loads(answer.body)["said"] == "hi"


async def test_answer_carries_the_correlation_id_or_else_the_message_id(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    returned = {("c", None): "c", ("c", "m"): "c", (None, "m2"): "m2", (None, None): None}
    for (correlation_id, message_id), expected in returned.items():
        given = {"correlation_id": correlation_id, "message_id": message_id}
        answer = await blocking(foreign.ask, amqp_url, echo.capability, b"{}", **given)

        assert answer.correlation_id == expected
        assert answer.headers.get("x-coditect-task") == message_id


@pytest.mark.parametrize("path", ["", "/", "/%2F", "/%2f"])
async def test_address_of_the_default_virtual_host_may_be_written_in_any_form(
    servers: Servers, echo: Echo, path: str
) -> None:
    url = servers.amqp_url.rstrip("/") + path
    settings = Settings(amqp_url=url, redis_url=servers.redis_url, drain_seconds=5.0)

    async with running(echo.agent(), servers, settings=settings) as fleet:
        value = await fleet.client.request(echo.capability, {"say": "there"}, timeout="10s")

    assert value["said"] == "there"
