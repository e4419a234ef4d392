"""Headers given to a submit: they reach every attempt of the handler as they are, or the submit refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent, Context, Options, Retry
from coditect.errors import InputError
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX, MOST_OWN_BYTES, checked_headers, foreign_headers, is_of_the_broker
from coditect.wire.json import loads
from tests.support import eventually
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene, answers

PLAIN = st.one_of(st.text(max_size=40), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False))
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
OWN = NAMES.filter(lambda name: not (name.startswith(HEADER_PREFIX) or is_of_the_broker(name)))
OF_THE_BROKER = {
    "x-death": [{"queue": "q", "reason": "expired", "count": 2}],
    "x-first-death-queue": "q",
    "x-first-death-reason": "expired",
    "x-last-death-exchange": "",
    "x-delivery-count": 1,
    "CC": ["nowhere.p1"],
}


class Reader:
    """An agent that notes the headers of each attempt, and fails at the first."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.agent = Agent("reader")

        @self.agent.capability("headers.read", retry=Retry(max_attempts=2, first="100ms"))
        async def read(_: None, ctx: Context) -> None:
            self.seen.append(dict(ctx.headers))
            if ctx.attempt == 1:
                raise ValueError("once more")


async def test_headers_reach_each_attempt_and_no_other_task() -> None:
    reader = Reader()
    headers = {"x-tenant": "blue", "count": 7, "share": 0.5, "urgent": True}
    async with TestFleet(agents=[reader.agent]) as fleet:
        handle = await fleet.submit("headers.read", headers=headers)
        await handle.result()
        await (await fleet.submit("headers.read", deadline="1h")).result()

    assert reader.seen == [headers, headers, {}, {}]


async def test_headers_of_a_foreign_publisher_are_seen_without_those_of_broker_and_runtime(scene: Scene) -> None:
    reader = Reader()
    await scene.start(reader.agent)
    broker, client = await scene.broker(), await scene.client()

    await broker.publish(
        Message(b"null", {"x-tenant": "blue", "x-deaths": 2, "odd": [1]} | OF_THE_BROKER, message_id="a"),
        exchange=routing.TASKS,
        routing_key="headers.read.p1",
    )
    await (await client.submit("headers.read")).result()

    seen = {"x-tenant": "blue", "x-deaths": 2}
    assert seen in reader.seen
    assert Options(headers=seen).headers == seen, "a handler passes on what it was given"


async def test_handler_in_a_process_sees_them(scene: Scene) -> None:
    client = await scene.serve(worker)

    options = Options(headers={"x-tenant": "blue"})
    assert await client.request("proc.headers", None, options=options) == {"x-tenant": "blue"}


@given(st.dictionaries(OWN, PLAIN, max_size=20))
def test_headers_that_a_submit_takes_are_carried_through_every_retry(headers: dict[str, Any]) -> None:
    assert foreign_headers(checked_headers("headers", headers)) == headers


@given(st.dictionaries(NAMES | st.sampled_from(sorted(OF_THE_BROKER)), PLAIN | st.just([1]), max_size=20))
def test_headers_that_a_handler_was_given_may_be_given_to_another_task(headers: dict[str, Any]) -> None:
    given_on = foreign_headers(headers)

    assert checked_headers("headers", given_on) == given_on


@pytest.mark.parametrize(
    "headers",
    [
        {"x-coditect-attempt": 3},
        {"x-death": "x"},
        {"CC": "other.p1"},
        {"": "x"},
        {"n" * 129: "x"},
        {1: "x"},
        {"x": "y" * 4_097},
        {"x": "\ud800"},
        {"x": 2**63},
        {"x": None},
        {"x": [1]},
        {"x": b"y"},
        {f"h{number}": 1 for number in range(65)},
        {f"h{number}": "x" * 4_000 for number in range(MOST_OWN_BYTES // 4_000 + 1)},
        "x-tenant",
        7,
    ],
)
def test_headers_that_would_not_arrive_are_refused_with_the_fix(headers: Any) -> None:
    with pytest.raises(InputError) as caught:
        Options(headers=headers)

    assert (caught.value.facts["parameter"], bool(caught.value.facts["fix"])) == ("headers", True)


@pytest.mark.parametrize("kept", [{"durable": True}, {"idempotency_key": "a"}])
def test_durable_task_has_no_headers_and_says_so(kept: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="durable"):
        Options(headers={"x": "y"}, **kept)


async def test_a_handler_knows_who_waits_for_its_result_and_how_long_it_may_run(scene: Scene) -> None:
    agent = Agent("bounded")

    @agent.capability("bounded.ask")
    async def ask(task: None, ctx: Context) -> tuple[str, float]:
        return ctx.requester, ctx.seconds_left(60)

    client = await scene.serve(agent)

    requester, most = await client.request("bounded.ask", None, timeout="90s")
    _, own = await (await client.submit("bounded.ask", None, timeout="20s")).result()
    _, left = await (await client.submit("bounded.ask", None, deadline="10s")).result()

    assert requester == client.name
    assert most == 60
    assert own == 20
    assert 5 < left <= 10


async def test_a_handler_passes_the_trace_of_its_task_on_without_the_baggage(scene: Scene) -> None:
    agent = Agent("traced")

    @agent.capability("traced.ask")
    async def ask(task: None, ctx: Context) -> dict[str, str]:
        return ctx.trace

    client = await scene.serve(agent)
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "vendor=1"}

    outside = await client.request("traced.ask", None)
    broker = await scene.broker()
    arrived = await answers(broker)
    message = Message(b"null", {**trace, "baggage": "tenant=blue"}, message_id="traced", reply_to="answers")
    await broker.publish(message, exchange=routing.TASKS, routing_key="traced.ask.p1")
    await eventually(lambda: arrived)

    assert outside == {}
    assert loads(arrived[0].message.body) == trace
