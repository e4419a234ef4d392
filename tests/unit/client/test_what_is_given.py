"""What a submit is given: it works as documented, or one typed error names the parameter and the fix."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from coditect import Options, Priority, Strategy, Wanted
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import capability_queues
from coditect.client.client import Client
from coditect.client.options import OptionFields
from coditect.errors import InputError, InvalidTask, ResultTimeout
from coditect.model.duration import seconds
from tests.unit.client.scene import CAPABILITY, Scene

ANYTHING = some.one_of(
    some.text(max_size=20),
    some.integers(),
    some.floats(),
    some.booleans(),
    some.binary(max_size=5),
    some.timedeltas(),
    some.datetimes(),
    some.datetimes(timezones=some.just(UTC)),
    some.lists(some.integers(), max_size=2),
    some.sampled_from([*Priority, *Strategy, "P0", "p2", "Least_Busy", "5m", "0s", "-1s", b"p0", object(), Wanted]),
)
TYPES = {"max_attempts": int, "deadline": datetime, "at": datetime, "wanted": Wanted}
TYPES |= dict.fromkeys(("results", "durable", "stream"), bool) | dict.fromkeys(
    ("pin", "idempotency_key", "task_id"), str
)


def documented(field: str, asked: Any, kept: Any) -> bool:
    """Whether the field holds what the documentation says that such a value means."""
    if field in ("priority", "strategy"):
        return isinstance(kept, Priority | Strategy) and str(asked).lower() == kept.value
    if field not in TYPES or (field == "deadline" and not isinstance(asked, datetime)):
        return seconds(asked) == seconds(kept) >= 0
    as_typed = isinstance(asked, TYPES[field]) and isinstance(asked, bool) is (TYPES[field] is bool)
    return kept is asked and as_typed and asked != "" and getattr(asked, "tzinfo", UTC) is UTC


@given(field=some.sampled_from(sorted(OptionFields.__annotations__)), asked=ANYTHING)
def test_an_option_works_as_documented_or_its_error_names_it(field: str, asked: Any) -> None:
    try:
        options = Options(**{field: asked})
    except InputError as error:
        assert error.facts["parameter"] == field
        assert error.facts["fix"]
    else:
        assert documented(field, asked, getattr(options, field))


@given(name=some.one_of(some.text(max_size=12), some.integers(), some.none(), some.lists(some.text(), max_size=1)))
def test_a_capability_that_is_no_name_is_refused_before_anything_is_sent(name: Any) -> None:
    async def submit() -> None:
        async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
            await client.submit(name, 1)

    with pytest.raises(InputError):
        asyncio.run(submit())


@pytest.mark.parametrize("level", ["p0", "P0", Priority.P0])
async def test_a_text_is_taken_for_a_priority(scene: Scene, level: Any) -> None:
    before = scene.server.queue(f"tasks.{CAPABILITY}.p0").stats.messages

    await scene.client.submit(CAPABILITY, 1, priority=level)

    assert scene.server.queue(f"tasks.{CAPABILITY}.p0").stats.messages == before + 1


@pytest.mark.parametrize(
    ("deadline", "left_ms"),
    [
        (lambda: "90s", 90_000),
        (lambda: timedelta(seconds=90), 90_000),
        (lambda: datetime.now(UTC) + timedelta(hours=1), 3_600_000),
    ],
)
async def test_a_deadline_is_a_span_or_an_instant(scene: Scene, deadline: Callable[[], Any], left_ms: int) -> None:
    await scene.client.submit(CAPABILITY, 1, deadline=deadline())

    delivery = await scene.broker.get(f"tasks.{CAPABILITY}.p1")
    assert delivery is not None
    message = delivery.message
    left = message.headers["x-coditect-deadline"] - message.headers["x-coditect-published-at"]
    assert message.expiration_ms == left
    assert left_ms - 600_000 < left <= left_ms


@pytest.mark.parametrize("durable", [False, True])
async def test_a_deadline_that_has_passed_is_refused(scene: Scene, durable: bool) -> None:
    with pytest.raises(InputError, match="passed already") as raised:
        await scene.client.submit(CAPABILITY, 1, deadline=datetime(2020, 1, 1, tzinfo=UTC), durable=durable)

    assert raised.value.facts["parameter"] == "deadline"


async def test_a_limit_beyond_what_rabbitmq_takes_is_left_to_the_agent(scene: Scene) -> None:
    await scene.client.submit(CAPABILITY, 1, deadline="60d")

    delivery = await scene.broker.get(f"tasks.{CAPABILITY}.p1")
    assert delivery is not None
    assert delivery.message.expiration_ms is None
    assert "x-coditect-deadline" in delivery.message.headers


async def test_a_request_without_a_result_is_refused_before_anything_is_sent(scene: Scene) -> None:
    with pytest.raises(InputError) as raised:
        await scene.client.request(CAPABILITY, 1, options=Options(results=False))

    assert raised.value.facts["parameter"] == "options"
    assert scene.server.queue(f"tasks.{CAPABILITY}.p1").stats.messages == 0


async def test_a_none_takes_precedence_where_it_is_a_value(scene: Scene) -> None:
    chosen = Options(priority=Priority.P0, timeout="1m", deadline="1h", max_attempts=2)

    await scene.client.submit(CAPABILITY, 1, options=chosen, priority=None, timeout=None, deadline=None)

    delivery = await scene.broker.get(f"tasks.{CAPABILITY}.p0")
    assert delivery is not None
    told = {name.removeprefix("x-coditect-") for name in delivery.message.headers}
    assert told & {"timeout-ms", "deadline", "max-attempts"} == {"max-attempts"}


async def test_a_durable_task_keeps_the_key_of_its_options(scene: Scene) -> None:
    chosen = Options(idempotency_key="k")

    first = await scene.client.submit(CAPABILITY, 1, options=chosen, durable=True)
    second = await scene.client.submit(CAPABILITY, 2, options=chosen, durable=True)

    assert first.task_id == second.task_id


async def test_an_unknown_keyword_names_the_nearest(scene: Scene) -> None:
    with pytest.raises(InputError) as raised:
        await scene.client.submit(CAPABILITY, 1, prioritty="p0")  # type: ignore[call-arg]

    assert (raised.value.facts["parameter"], raised.value.facts["fix"]) == ("prioritty", "priority=...")


@pytest.mark.parametrize("options", [None, Options(deadline="1m"), Options(durable=True)])
async def test_a_request_with_a_timeout_that_is_none_sends_nothing(scene: Scene, options: Options | None) -> None:
    with pytest.raises(InputError) as raised:
        await scene.client.request(CAPABILITY, 1, timeout="soon", options=options)

    assert raised.value.facts["parameter"] == "timeout"
    assert scene.server.queue(f"tasks.{CAPABILITY}.p1").stats.messages == 0
    assert scene.plane.asked == []


async def test_requests_that_gave_up_leave_nothing_behind() -> None:
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        await broker.declare(capability_queues(CAPABILITY))
        for _ in range(20):
            with pytest.raises(ResultTimeout):
                await client.request(CAPABILITY, 1, timeout=0.001)
        given_up = asyncio.ensure_future(client.request(CAPABILITY, 1, timeout="1m"))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait({given_up})

        assert client._requests._waiting == {}


@pytest.mark.parametrize("bad", [0, 2, 700])
async def test_a_batch_with_a_bad_value_gives_a_handle_for_each_task_that_runs(bad: int) -> None:
    values: list[object] = list(range(1_000))
    values[bad] = float("nan")
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        await broker.declare(capability_queues(CAPABILITY))
        taken = []
        with pytest.raises(InvalidTask):
            async for handle in client.submit_many(CAPABILITY, values):
                taken.append(handle.task_id)

        waiting = [await broker.get(f"tasks.{CAPABILITY}.p1") for _ in taken]
        assert await broker.get(f"tasks.{CAPABILITY}.p1") is None

    assert [one.message.message_id for one in waiting if one is not None] == taken
    assert len(taken) == (500 if bad > 500 else 0)


async def test_a_batch_whose_source_fails_gives_a_handle_for_each_task_that_runs() -> None:
    async with MemoryBroker(MemoryServer()) as broker, Client(broker) as client:
        await broker.declare(capability_queues(CAPABILITY))
        taken = []
        with pytest.raises(ZeroDivisionError):
            async for handle in client.submit_many(CAPABILITY, (1 // (n - 25) for n in range(50)), concurrency=10):
                taken.append(handle.task_id)

        stats = await broker.stats(f"tasks.{CAPABILITY}.p1")

    assert stats is not None
    assert stats.messages == len(taken) == 20


@pytest.mark.parametrize("values", ["text", b"bytes", {"a": 1}, 7, None])
async def test_what_is_no_sequence_of_values_is_refused(scene: Scene, values: Any) -> None:
    with pytest.raises(InputError) as raised:
        async for _ in scene.client.submit_many(CAPABILITY, values):
            pass

    assert raised.value.facts["parameter"] == "inputs"
