"""What is really sent, taken off the broker by a stranger, is what the published schemas say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pika.adapters.blocking_connection import BlockingChannel

from coditect import Agent, Context, Retry
from coditect.client.options import Options
from coditect.errors import TaskError
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.wire import control_messages, routing
from coditect.wire.tasks import CREDIT, PART_TYPE
from tests.fleet import Running, running
from tests.integration.wire import foreign
from tests.integration.wire.foreign import blocking
from tests.integration.wire.schemas import as_json, complaints, names, schema
from tests.servers import Servers
from tests.support import eventually

Message = dict[str, Any]


@pytest.mark.parametrize("name", names())
def test_schema_is_one_and_its_examples_fit(name: str) -> None:
    loaded = schema(name)

    Draft202012Validator.check_schema(loaded)
    assert loaded["$id"] == f"urn:coditect:wire:{name}"
    assert [complaints(name, example) for example in loaded.get("examples", [])] == [
        [] for _ in loaded.get("examples", [])
    ]


def _talkative(capability: str) -> Agent:
    """An agent that sends one of everything."""
    agent = Agent("talkative", slots=4)

    @agent.capability(f"{capability}.parent")
    async def parent(_: object, ctx: Context) -> object:
        await ctx.progress(0.5, "half")
        return await ctx.request(f"{capability}.child", {"of": "parent"}, timeout="5s")

    @agent.capability(f"{capability}.child")
    async def child(value: object) -> object:
        return value

    @agent.capability(f"{capability}.parts")
    async def parts(most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    @agent.capability(f"{capability}.flaky", retry=Retry(max_attempts=2, first="100ms", cap="100ms"))
    async def flaky(_: object, ctx: Context) -> object:
        raise ValueError(f"attempt {ctx.attempt}: ünïcödé")

    return agent


@contextmanager
def _tap(opened: BlockingChannel, exchange: str, key: str = "#") -> Iterator[list[Message]]:
    """Copies of what goes through an exchange from now on; complete when the block is left."""
    queue = foreign.own_queue(opened)
    opened.queue_bind(queue, exchange, key)
    copies: list[Message] = []
    yield copies
    while True:
        method, properties, body = opened.basic_get(queue, auto_ack=True)
        if method is None or properties is None or body is None:
            return
        copies.append(as_json(properties, body))


async def _one_of_everything(fleet: Running, capability: str) -> None:
    client = fleet.client
    options = Options(timeout="5s", deadline="1m", start_within="30s", max_attempts=2)
    await client.request(f"{capability}.parent", {"n": 1}, options=Options(priority=Priority.P0))
    handle = await client.submit(f"{capability}.flaky", None, options=options)
    with pytest.raises(TaskError):
        await handle.result(timeout="100s")
    pinned = await client.submit(f"{capability}.child", [1], pin=fleet.runtime.agent_id)
    await pinned.result(timeout="100s")
    streamed = await client.submit(f"{capability}.parts", 200, stream=True)
    assert [part async for part in streamed.stream()] == list(range(200))
    await client.broadcast("prices", {"tea": 3}, exclude=["nobody"])
    await client.tasks.cancel("no-such-task", reason="only to see the message")
    await client.emit("shop.opened", subject="shop", hour=9)
    ping = control_messages.ping(task_id="nowhere", metrics=["coditect_task_attempts_total"], reply_to="")
    bare = [control_messages.message(kind) for kind in (control_messages.PING, control_messages.LISTEN)]
    for message in (ping, *bare):
        await fleet.broker.publish(message, exchange=routing.BROADCAST, routing_key="")


@pytest.mark.servers
async def test_everything_that_is_really_sent_fits_its_schema(servers: Servers, capability: str) -> None:
    async with running(_talkative(capability), servers) as fleet:
        with foreign.channel(servers.amqp_url) as opened:
            agent_id, reply_to = fleet.runtime.agent_id, f"reply.{fleet.client.name}"
            with (
                _tap(opened, routing.SUBMIT) as submitted,
                _tap(opened, routing.AGENTS, agent_id) as pinned,
                _tap(opened, routing.retry_exchange(100)) as retried,
                _tap(opened, routing.DEAD) as dead,
                _tap(opened, routing.REPLIES, reply_to) as replies,
                _tap(opened, routing.AGENTS, routing.mailbox_key(AgentId(agent_id))) as credit,
                _tap(opened, routing.EVENTS) as events,
                _tap(opened, routing.BROADCAST) as control,
            ):
                await _one_of_everything(fleet, capability)

    results = [one for one in replies if one["properties"]["type"] != PART_TYPE]
    found = {
        "task": [*submitted, *pinned, *retried],
        "result": results,
        "part": [one for one in replies if one not in results],
        "dead-letter": dead,
        "event": events,
        "letter": [*control, *credit],
    }
    wrong = {name: [complaints(name, one) for one in messages] for name, messages in found.items()}
    assert {name: [one for one in many if one] for name, many in wrong.items()} == {name: [] for name in found}
    assert {name: _undescribed(name, messages) for name, messages in found.items()} == {name: set() for name in found}
    assert [one["headers"]["x-coditect-attempt"] for one in retried] == [2]
    assert ({"of": "parent"}, 1) in [(one["body"], one["headers"].get("x-coditect-depth")) for one in submitted]
    assert {"x-coditect-deadline", "x-coditect-timeout-ms", "x-coditect-start-by"} <= _headers(submitted)
    assert [one["headers"]["CC"] for one in pinned] == [[f"{capability}.child.p1"]]
    assert {one["headers"]["x-coditect-status"] for one in results} == {"completed", "failed"}
    assert [one["headers"]["x-coditect-reason"] for one in dead] == ["handler_error"]
    assert {one["headers"]["ce-type"].split(".")[-2] for one in events} >= {"started", "progress", "retrying", "opened"}
    assert len({one["properties"]["type"] for one in control}) == 4
    assert {one["properties"]["type"] for one in credit} == {CREDIT}
    assert [one["headers"]["x-coditect-part"] for one in found["part"]] == list(range(201))


def _headers(messages: list[Message]) -> set[str]:
    return {name for one in messages for name in one["headers"]}


def _undescribed(name: str, messages: list[Message]) -> set[str]:
    """Headers of ours that are sent and that the schema does not mention."""
    described = {control_messages.TOPIC, control_messages.EXCEPT}  # whose schema is a choice of several
    for part in {"dead-letter": ("dead-letter", "task"), "letter": ()}.get(name, (name,)):
        described |= set(schema(part)["properties"]["headers"]["properties"])
    brokers_own = {"x-delivery-count"}
    return _headers(messages) - described - brokers_own


@pytest.mark.servers
@pytest.mark.parametrize("body", [b"null", b'{"task_id": "nowhere"}'])
async def test_answer_to_a_ping_fits_its_schema(servers: Servers, capability: str, body: bytes) -> None:
    async with running(_talkative(capability), servers) as fleet:

        def ping() -> Message:
            with foreign.channel(servers.amqp_url) as opened:
                queue = foreign.own_queue(opened)
                properties = foreign.properties(type=control_messages.PING, reply_to=queue, correlation_id="c")
                key = routing.mailbox_key(AgentId(fleet.runtime.agent_id))
                opened.basic_publish(routing.AGENTS, key, body, properties, mandatory=True)
                (answer,) = foreign.answers(opened, queue, many=1, seconds=10)
                return as_json(answer.properties, answer.body)

        pong = await blocking(ping)

    assert complaints("letter", pong) == []
    assert pong["body"]["agent_id"] == fleet.runtime.agent_id


@pytest.mark.servers
async def test_refusals_of_bad_input_fit_the_schema_of_results(servers: Servers, capability: str) -> None:
    async with running(_talkative(capability), servers) as fleet:
        key = f"{capability}.child"
        bad: list[tuple[bytes, dict[str, Any]]] = [
            (b"{}", {"type": "unknown"}),
            (b"{}", {"headers": {"x-coditect-deadline": 1}}),
            (b"x" * 1_100_000, {}),
            (b"{", {"message_id": "m"}),
        ]

        answers = await blocking(foreign.ask_many, servers.amqp_url, key, bad)

        assert [complaints("result", as_json(one.properties, one.body)) for one in answers] == [[]] * 4
        await eventually(lambda: fleet.holds(f"dead.{key}", 4))
        letters = [{"headers": letter.headers} for letter in await fleet.letters(f"dead.{key}")]
        assert [complaints("dead-letter", letter) for letter in letters] == [[]] * 4
        errors = [json.loads(str(letter["headers"]["x-coditect-error"])) for letter in letters]
        assert [complaints("failure", error) for error in errors] == [[]] * 4
