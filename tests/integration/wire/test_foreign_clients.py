"""Clients without our library: an exchange, a key and a JSON body get work done, and any return address an answer."""

from __future__ import annotations

import json
import shutil
from uuid import uuid4

import pytest

from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.settings.settings import Settings
from coditect.wire import routing
from tests.fleet import Running, remove_queues, running
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
async def test_amqp_publish_reads_the_body_from_its_input(fleet: Running, echo: Echo, amqp_url: str) -> None:
    command = ("amqp-publish", "-u", amqp_url, "-e", "coditect.tasks", "-r", echo.capability)

    await blocking(foreign.tool, *command, stdin=b'{"say": "from stdin"}')

    await eventually(lambda: echo.started == ["from stdin"])


@amqp_tools
async def test_limits_sent_as_text_by_amqp_publish_are_kept(fleet: Running, echo: Echo, amqp_url: str) -> None:
    header = ("-H", "x-coditect-timeout-ms: 50", "-H", "x-coditect-max-attempts: 1")
    command = ("amqp-publish", "-u", amqp_url, "-e", "coditect.tasks", "-r", echo.capability, *header)

    await blocking(foreign.tool, *command, "-b", '{"wait": true}')

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


async def test_pika_is_answered_through_direct_reply_to(fleet: Running, echo: Echo, amqp_url: str) -> None:
    answer = await blocking(foreign.ask_directly, amqp_url, f"{echo.capability}.p1", b'{"say": "hi"}')

    assert json.loads(answer.body)["said"] == "hi"


async def test_pika_is_answered_directly_after_a_retry(fleet: Running, echo: Echo, amqp_url: str) -> None:
    answer = await blocking(foreign.ask_directly, amqp_url, f"{echo.capability}.p1", b'{"fail": true}')

    assert (answer.status, answer.headers["x-coditect-attempt"]) == ("failed", 2)


async def test_pika_is_answered_through_the_exchange_for_replies(fleet: Running, echo: Echo, amqp_url: str) -> None:
    name = f"reply.{uuid4().hex}"

    answer = await blocking(foreign.ask_through_replies, amqp_url, echo.capability, b'{"say": "hi"}', name)

    assert json.loads(answer.body)["said"] == "hi"


async def test_key_without_a_level_is_p1(fleet: Running, echo: Echo, amqp_url: str) -> None:
    answer = await blocking(foreign.ask, amqp_url, echo.capability, b"{}")

    assert json.loads(answer.body)["priority"] == "p1"


@pytest.mark.parametrize("door", [routing.TASKS, routing.SUBMIT])
async def test_every_key_of_a_capability_lands_in_the_queue_of_its_level(
    amqp_url: str, capability: str, door: str
) -> None:
    async with AmqpBroker(amqp_url) as broker:
        await broker.declare(base_topology() + capability_queues(capability))

        for key in (capability, *(f"{capability}.{level.value}" for level in Priority)):
            await blocking(foreign.publish, amqp_url, key, b"{}", exchange=door)

        stats = [await broker.stats(routing.task_queue(capability, level)) for level in Priority]
        await remove_queues(broker, [capability])
        assert [one.messages for one in stats if one] == [1, 2, 1]


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        ({"correlation_id": "c"}, "c"),
        ({"correlation_id": "c", "message_id": "m"}, "c"),
        ({"message_id": "m"}, "m"),
        ({}, None),
    ],
)
async def test_answer_carries_the_correlation_id_or_else_the_message_id(
    fleet: Running, echo: Echo, amqp_url: str, given: dict[str, str], returned: str | None
) -> None:
    answer = await blocking(foreign.ask, amqp_url, echo.capability, b"{}", **given)

    assert answer.correlation_id == returned
    assert answer.headers.get("x-coditect-task") == given.get("message_id")


async def test_failure_tells_a_foreign_client_what_happened(fleet: Running, echo: Echo, amqp_url: str) -> None:
    answer = await blocking(foreign.ask, amqp_url, echo.capability, b'{"say": "sorry", "fail": true}')

    failure = json.loads(answer.body)
    assert answer.status == "failed"
    assert (failure["reason"], failure["type"], failure["message"]) == ("handler_error", "ValueError", "sorry")
    assert "raise ValueError" in failure["traceback"]


async def test_task_without_a_return_address_is_done_and_answers_nobody(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    await blocking(foreign.publish, amqp_url, echo.capability, b'{"say": "quietly"}')

    await eventually(lambda: fleet.runtime.load().completed == 1)
    assert await fleet.letters(f"dead.{echo.capability}") == []


async def test_answer_that_nobody_waits_for_any_more_holds_up_nobody(fleet: Running, echo: Echo, amqp_url: str) -> None:
    await blocking(
        foreign.publish, amqp_url, echo.capability, b'{"say": "late"}', reply_to=f"answers-gone-{uuid4().hex}"
    )

    answer = await blocking(foreign.ask, amqp_url, echo.capability, b'{"say": "next"}')

    assert json.loads(answer.body)["said"] == "next"
    await eventually(lambda: fleet.runtime.load().completed == 2)


async def test_fifty_tasks_at_once_are_each_answered_once(fleet: Running, echo: Echo, amqp_url: str) -> None:
    requests = [(json.dumps({"say": str(n)}).encode(), {"correlation_id": str(n)}) for n in range(50)]

    answers = await blocking(foreign.ask_many, amqp_url, echo.capability, requests)

    assert {(one.correlation_id, json.loads(one.body)["said"]) for one in answers} == {
        (str(n), str(n)) for n in range(50)
    }


@pytest.mark.parametrize("path", ["", "/", "/%2F", "/%2f"])
async def test_address_of_the_default_virtual_host_may_be_written_in_any_form(
    servers: Servers, echo: Echo, path: str
) -> None:
    url = servers.amqp_url.rstrip("/") + path
    settings = Settings(amqp_url=url, redis_url=servers.redis_url, drain_seconds=5.0)

    async with running(echo.agent(), servers, settings=settings) as fleet:
        value = await fleet.client.request(echo.capability, {"say": "there"}, timeout="10s")

    assert value["said"] == "there"
