"""What a handler finds in its context, headers and context variables, and what it gives to `ctx.request`."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import encode

from coditect import Agent, Context, Options, Priority, Retry
from coditect.agent.context import PlainContext, Services
from coditect.broker.rabbitmq.fields import MAX_TABLE_BYTES
from coditect.errors import InputError
from coditect.model.duration import seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Task
from coditect.testing import TestFleet
from coditect.wire import routing, tasks
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


texts = st.text(st.characters(codec="utf-8"), max_size=40)


@pytest.mark.parametrize("odd", [b"bytes", [1], {"a": 1}, None, "x" * 5_000])
@pytest.mark.parametrize(
    "brokers", ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"]
)
def test_plain_headers_are_carried_on_and_ours_into_a_dead_letter_alone(odd: object, brokers: str) -> None:
    headers = {"odd": odd, brokers: "x", tasks.DEADLINE: 5, "customer": "ada"}

    assert foreign_headers(headers) == {"customer": "ada"}
    assert foreign_headers(headers, keep_ours=True) == {"customer": "ada", tasks.DEADLINE: 5}


def test_ours_are_kept_first_when_not_everything_fits() -> None:
    crowd = {f"h{number}": "x" * 4_000 for number in range(100)}

    kept = foreign_headers(crowd | {tasks.DEADLINE: 5}, keep_ours=True)

    assert kept[tasks.DEADLINE] == 5
    assert len(kept) == 5


@given(
    st.dictionaries(texts, st.one_of(texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=4_096)))
)
def test_what_is_carried_on_stays_far_below_what_a_message_may_have(headers: dict[str, Any]) -> None:
    kept = foreign_headers(headers, keep_ours=True)

    assert all(headers[name] == value for name, value in kept.items())
    assert sum(len(encode.encode_table_value(value)) for value in kept.values()) < MAX_TABLE_BYTES // 3


LEVELS = {"p0": "p0", "P2": "p2", None: "p1"}
ANYTHING = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.binary(max_size=5),
    st.timedeltas(),
    st.datetimes(),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([*Priority, "P0", "p2", "5m", "0s", "-1s", b"p0"]),
)


@pytest.mark.parametrize("given_", LEVELS)
@pytest.mark.parametrize("where", ["loop", "proc"])
async def test_a_text_is_taken_for_the_priority_of_a_request(scene: Scene, where: str, given_: str | None) -> None:
    client = await scene.serve(worker)

    assert await client.request(f"{where}.ask.for", {"priority": given_}, str) == LEVELS[given_]


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ({"priority": "p9"}, ["priority", "one of p0, p1, p2"]),
        ({"timeout": "soon"}, ["timeout", "a number and a unit: 250ms, 30s, 5m, 2h or 2d; or seconds, or a timedelta"]),
    ],
)
@pytest.mark.parametrize("where", ["loop", "proc"])
async def test_a_request_that_cannot_be_meant_is_refused_where_it_stands(
    scene: Scene, where: str, how: dict[str, Any], refused: list[str]
) -> None:
    client = await scene.serve(worker)

    assert await client.request(f"{where}.ask.for", how) == refused


@dataclass
class Asked:
    """The runtime's part of a context: it keeps what it was asked for."""

    levels: list[Priority] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    told: list[tuple[float, str]] = field(default_factory=list)

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        self.levels.append(priority)
        self.timeouts.append(timeout_seconds)
        return Outcome(Status.COMPLETED, b"null", "child", None)

    def progress(self, share: float, note: str) -> None:
        self.told.append((share, note))

    report = progress

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None: ...


@given(name=st.sampled_from(["priority", "timeout"]), asked=ANYTHING)
def test_an_argument_works_as_documented_or_its_error_names_it_before_anything_is_asked(name: str, asked: Any) -> None:
    services = Asked()
    context = Context(
        Task("a.parent", Priority.P1, b"null"), TaskId("parent"), AgentId("agent"), cast("Services", services)
    )

    try:
        asyncio.run(context.request("a.child", **{name: asked}))
    except InputError as error:
        assert error.facts["parameter"] == name
        assert error.facts["fix"]
        assert services == Asked()
    else:
        assert services.levels == [Priority(str(asked or "p1").lower()) if name == "priority" else Priority.P1]
        assert services.timeouts == [seconds(asked) if name == "timeout" else 300.0]


def tell(way: str, services: Asked, share: Any, note: Any) -> None:
    kind = PlainContext if way == "plain" else Context
    context = kind(Task("a.b", Priority.P1, b"null"), TaskId("task"), AgentId("agent"), cast("Services", services))
    if way == "report":
        context.report(share, note)
    elif isinstance(context, Context):
        asyncio.run(context.progress(share, note))
    else:
        context.progress(share, note)


each_way = pytest.mark.parametrize("way", ["async", "plain", "report"])


@each_way
@pytest.mark.parametrize("share", [Decimal("0.5"), Fraction(1, 2), 0.5])
def test_progress_is_a_float_whatever_number_it_was(way: str, share: Any) -> None:
    services = Asked()

    tell(way, services, share, "half")
    tell(way, services, type(share)(7), "")
    tell(way, services, 10**400, "")
    tell(way, services, -1, "")

    assert services.told == [(0.5, "half"), (1.0, ""), (1.0, ""), (0.0, "")]
    assert {type(share) for share, _ in services.told} == {float}


@each_way
@pytest.mark.parametrize(
    ("share", "note", "parameter"),
    [
        *((share, "", "share") for share in ("0.5", None, [1], 1j, Decimal("NaN"))),
        *((0.5, note, "note") for note in (None, True, [1], b"half")),
    ],
)
def test_progress_that_is_no_number_or_no_text_is_refused(way: str, share: Any, note: Any, parameter: str) -> None:
    services = Asked()

    with pytest.raises(InputError) as refused:
        tell(way, services, share, note)

    assert (refused.value.facts["parameter"], services.told) == (parameter, [])


left_behind: ContextVar[str] = ContextVar("left_behind", default="nothing")


def swapped(mine: str) -> str:
    """What another task left behind, and something for the next one to find."""
    found = left_behind.get()
    left_behind.set(mine)
    return found


def setting() -> Agent:
    agent = Agent("setting", slots=1)
    agent.capability("set.thread")(swapped)

    @agent.capability("set.quick")
    async def waiting_for_nothing(mine: str) -> str:
        return swapped(mine)

    @agent.capability("set.loop")
    async def waiting(mine: str) -> str:
        found = swapped(mine)
        await asyncio.sleep(0.01)
        return found

    return agent


async def test_tasks_find_nothing_of_each_other() -> None:
    async with TestFleet(agents=[setting()]) as fleet:
        kinds = ["set.thread", "set.quick", "set.loop"] * 10
        handles = [await fleet.submit(kind, f"{kind} {number}") for number, kind in enumerate(kinds)]

        assert {await handle.result(str, timeout="1m") for handle in handles} == {"nothing"}


async def test_tasks_of_a_worker_process_find_nothing_of_each_other(scene: Scene) -> None:
    await scene.start(worker)

    assert [await scene.request("proc.context", f"task {n}", str, timeout="30s") for n in range(4)] == ["nothing"] * 4
