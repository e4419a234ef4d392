"""Results in parts: in order, at the reader's pace, closed promptly, begun again by another execution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, CallNext, Context, Depends, MiddlewareContext, Options, PlainContext, Retry, Workflow
from coditect.agent import signature
from coditect.agent.services import ProcessServices
from coditect.blobs import open_blobs
from coditect.client.client import Client
from coditect.errors import (
    InputError,
    ResultTimeout,
    StreamRestarted,
    TaskCanceled,
    TaskFailed,
)
from coditect.messaging.rpc import AHEAD
from coditect.testing import TestFleet
from tests.support import eventually
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


class Writer:
    """An agent whose handlers yield, and what `text.count` has done so far."""

    def __init__(self, **options: Any) -> None:
        self.yielded = 0
        self.closed = 0
        self.agent = Agent("writer")
        self.agent.capability("text.count", retry=ONCE, **options)(self._count)
        self.agent.capability("text.plain")(plain)
        self.agent.capability("text.whole")(whole)
        self.agent.capability("text.breaks", retry=Retry(max_attempts=2))(breaks)
        for handler in (fails, lies, swells):
            self.agent.capability(f"text.{handler.__name__}", retry=ONCE)(handler)

    async def _count(self, most: int) -> AsyncIterator[int]:
        try:
            for number in range(most):
                yield number
                self.yielded = number + 1
        finally:
            self.closed += 1


def plain(most: int, ctx: PlainContext) -> Iterator[str]:
    for number in range(most):
        yield f"{ctx.attempt}:{number}"


async def breaks(at: int, ctx: Context) -> AsyncIterator[str]:
    for number in range(at):
        yield f"{ctx.attempt}:{number}"
    if ctx.attempt == 1:
        raise ValueError("a line is missing")


async def fails(at: int) -> AsyncIterator[int]:
    for number in range(at):
        yield number
    raise ValueError("the end is missing")


async def lies(_: int) -> AsyncIterator[int]:
    yield 1
    yield "two"  # type: ignore[misc]


async def swells(size: int) -> AsyncIterator[str]:
    yield "small"
    yield "x" * size
    yield "small"


async def whole(text: str) -> str:
    return text


async def read(parts_: AsyncIterator[Any]) -> list[Any]:
    return [part async for part in parts_]


@pytest.mark.parametrize("many", [0, 1, AHEAD, 1_000])
async def test_the_parts_come_in_order_and_the_result_is_their_number(many: int) -> None:
    async with TestFleet(agents=[Writer().agent]) as fleet:
        handle = await fleet.client.submit("text.count", many, stream=True)
        plain = await fleet.client.submit("text.plain", many, stream=True)

        assert await read(handle.stream(int)) == list(range(many))
        assert await read(plain.stream()) == [f"1:{number}" for number in range(many)]
        assert await handle.result() == await plain.result() == many


async def test_without_a_stream_the_parts_are_one_list() -> None:
    flow = Workflow("lines")
    flow.task("text.count", 3)

    async with TestFleet(agents=[Writer().agent]) as fleet:
        assert await fleet.request("text.count", 70) == list(range(70))
        assert len(await fleet.request("text.plain", 70)) == 70
        run = await fleet.client.start(flow)
        assert await run.result() == [0, 1, 2], "and a workflow's node has it as its value"


async def test_parts_that_are_too_large_for_one_list_fail_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "MOST_COLLECTED_BYTES", 20)

    async with TestFleet(agents=[Writer().agent]) as fleet:
        with pytest.raises(TaskFailed) as raised:
            await fleet.request("text.count", 1_000)

    assert "stream=True" in str(raised.value.facts["fix"])


async def test_an_agent_waits_for_a_reader_that_stands_still(scene: Scene) -> None:
    writer = Writer()
    client = await scene.serve(writer.agent)
    handle = await client.submit("text.count", 10_000, stream=True)
    stream = handle.stream()

    assert await anext(stream) == 0
    await eventually(lambda: writer.yielded == AHEAD)
    for number in range(1, 1_000):
        assert await anext(stream) == number
        assert writer.yielded <= number + AHEAD + 1
    assert scene.ready(f"reply.{client.name}") == 0
    await stream.aclose()  # type: ignore[attr-defined]


async def test_a_credit_that_was_lost_is_given_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.agent.execution.WAITS_SECONDS", 0.05)
    writer = Writer()
    await scene.start(writer.agent)
    given = []
    honest = ProcessServices.credit

    def forgetful(services: ProcessServices, credit: Any) -> None:
        given.append(credit)
        if len(given) > 1:
            honest(services, credit)

    monkeypatch.setattr(ProcessServices, "credit", forgetful)
    handle = await scene.submit("text.count", AHEAD + 1, stream=True)

    assert await read(handle.stream()) == list(range(AHEAD + 1))
    assert given[0].until == given[1].until or given[1].until > given[0].until


@pytest.mark.parametrize("cancels", [False, True], ids=["leaves the loop", "cancels"])
async def test_who_leaves_the_loop_or_cancels_ends_the_handler(scene: Scene, cancels: bool) -> None:
    writer = Writer()
    handle = await (await scene.serve(writer.agent)).submit("text.count", 10_000, stream=True)

    with pytest.raises(TaskCanceled):
        async for part in handle.stream():
            if part == 10 and not cancels:
                break
            if part == 100:
                await handle.cancel()
        await handle.result()

    await eventually(lambda: writer.closed == 1)


async def test_a_time_limit_ends_handler_and_loop() -> None:
    writer = Writer(timeout="30s")
    async with TestFleet(agents=[writer.agent]) as fleet:
        handle = await fleet.client.submit("text.count", 10_000, stream=True)
        stream = handle.stream()
        await anext(stream)
        await fleet.advance("40s")

        with pytest.raises(TaskFailed) as raised:
            await read(stream)

    assert raised.value.facts["reason"] == "timeout"
    assert writer.closed == 1


async def test_an_agent_notices_that_its_reader_is_gone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.agent.execution.WAITS_SECONDS", 0.05)
    writer = Writer()
    await scene.start(writer.agent)
    async with Client(await scene.broker(), scene.registry) as client:
        handle = await client.submit("text.count", 10_000, stream=True)
        stream = handle.stream()
        await anext(stream)
        await eventually(lambda: writer.yielded == AHEAD)

    await eventually(lambda: writer.closed == 1)


@pytest.mark.parametrize(
    ("capability", "value", "sent", "told"),
    [
        ("text.fails", 50, [*range(50)], "the end is missing"),
        ("text.lies", 1, [1], "does not fit the schema"),
        ("text.swells", 2_000_000, ["small"], "CODITECT_BLOB_URL"),
    ],
)
async def test_a_failure_comes_after_the_parts(capability: str, value: int, sent: list[object], told: str) -> None:
    got = []
    async with TestFleet(agents=[Writer().agent]) as fleet:
        handle = await fleet.client.submit(capability, value, stream=True)

        with pytest.raises(TaskFailed) as raised:
            async for part in handle.stream():
                got.append(part)

    assert (got, told in f"{raised.value} {raised.value.facts}") == (sent, True)


async def test_another_attempt_begins_the_parts_again() -> None:
    async with TestFleet(agents=[Writer().agent]) as fleet:
        handle = await fleet.client.submit("text.breaks", 5, stream=True)
        first = []
        with pytest.raises(StreamRestarted) as raised:
            async for part in handle.stream():
                first.append(part)

        assert raised.value.facts["attempt"] == 2
        assert raised.value.facts["read"] == len(first)
        assert first == [f"1:{number}" for number in range(5)]
        assert await read(handle.stream()) == [f"2:{number}" for number in range(5)]


async def test_another_agent_begins_the_parts_of_a_killed_one_again() -> None:
    agent = Agent("writer")

    @agent.capability("text.who")
    async def who(most: int, ctx: Context) -> AsyncIterator[str]:
        for _ in range(most):
            yield ctx.agent_id

    async with TestFleet(agents=[agent], replicas=2) as fleet:
        handle = await fleet.client.submit("text.who", 1_000, stream=True)
        stream = handle.stream()
        killed = await anext(stream)
        fleet.kill(killed)

        with pytest.raises(StreamRestarted) as raised:
            await read(stream)
        again = await read(handle.stream())

    assert raised.value.facts["agent"] != killed
    assert again == [raised.value.facts["agent"]] * 1_000


async def test_a_lost_connection_of_the_reader_loses_and_doubles_no_part(scene: Scene) -> None:
    await scene.start(Writer().agent)
    broker = await scene.broker()
    async with Client(broker, scene.registry) as client:
        handle = await client.submit("text.count", 1_000, stream=True)
        got = []
        async for part in handle.stream():
            got.append(part)
            if part % 200 == 100:
                scene.server.stop()
                await asyncio.sleep(0)
                scene.server.start()

    assert got == list(range(1_000))


async def test_after_a_wait_in_vain_the_reading_goes_on(scene: Scene) -> None:
    agent, go = Agent("slow"), asyncio.Event()

    @agent.capability("text.slow")
    async def slow(_: None) -> AsyncIterator[int]:
        yield 1
        await go.wait()
        yield 2

    await scene.start(agent)
    handle = await scene.submit("text.slow", stream=True)
    got = []
    with pytest.raises(ResultTimeout):
        async for part in handle.stream(timeout="100ms"):
            got.append(part)
    go.set()

    assert got + await read(handle.stream()) == [1, 2]


async def test_two_loops_do_not_share_the_parts(scene: Scene) -> None:
    agent = Agent("silent")

    @agent.capability("text.silent")
    async def silent(_: None) -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    handle = await (await scene.serve(agent)).submit("text.silent", stream=True)
    first = asyncio.ensure_future(anext(handle.stream()))
    await asyncio.sleep(0)

    with pytest.raises(InputError, match="read already"):
        await anext(handle.stream())

    first.cancel()
    with suppress(asyncio.CancelledError):
        await first


async def test_middleware_that_calls_the_handler_again_begins_another_stream() -> None:
    async def again(ctx: MiddlewareContext, call_next: CallNext) -> Any:
        with suppress(ValueError):
            return await call_next(ctx)
        return await call_next(ctx)

    agent, calls = Agent("writer", middleware=[again]), list[int]()

    @agent.capability("text.lines", retry=ONCE)
    async def lines(most: int) -> AsyncIterator[int]:
        calls.append(most)
        for number in range(most):
            yield number
        if len(calls) == 1:
            raise ValueError("a line is missing")

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.client.submit("text.lines", 3, stream=True)
        stream = handle.stream(int)
        first = await anext(stream)
        await handle.result()

        with pytest.raises(StreamRestarted):
            await read(stream)
        assert await read(handle.stream(int)) == [0, 1, 2]

    assert first == 0
    assert calls == [3, 3]


async def test_a_large_part_goes_by_the_blob_store(scene: Scene, tmp_path: Path) -> None:
    await scene.start(Writer().agent, blob_url=str(tmp_path))
    blobs = open_blobs(str(tmp_path), most_bytes=10_000_000)
    async with Client(await scene.broker(), scene.registry, blobs=blobs) as client:
        handle = await client.submit("text.swells", 2_000_000, stream=True)

        assert [len(part) async for part in handle.stream()] == [5, 2_000_000, 5]


async def test_dependencies_are_closed_after_the_last_part() -> None:
    told, agent = [], Agent("shop")

    async def session() -> AsyncIterator[str]:
        yield "session"
        told.append("close")

    @agent.capability("shop.list")
    async def things(_: None, session: str = Depends(session)) -> AsyncIterator[str]:
        yield session
        told.append("last")

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.client.submit("shop.list", stream=True)

        assert [part async for part in handle.stream()] == ["session"]
        assert await fleet.request("shop.list") == ["session"]

    assert told == ["last", "close"] * 2


async def test_what_cannot_be_streamed_is_refused_with_what_to_do() -> None:
    async with TestFleet(agents=[Writer().agent]) as fleet:
        for fields in ({"durable": True}, {"idempotency_key": "one"}, {"results": False}):
            with pytest.raises(InputError) as raised:
                await fleet.client.submit("text.count", 1, stream=True, **fields)
            assert raised.value.facts["parameter"] == "stream"
        whole = await fleet.client.submit("text.whole", "all", stream=True)
        with pytest.raises(InputError, match="as a whole"):
            await anext(whole.stream())
        assert await whole.result() == "all"
        with pytest.raises(InputError, match="whole result"):
            await fleet.client.request("text.count", 1, options=Options(stream=True))
        unasked = await fleet.client.submit("text.count", 1)
        with pytest.raises(InputError, match="without a stream"):
            await anext(unasked.stream())


async def test_a_part_is_taken_as_it_was_yielded() -> None:
    agent = Agent("writer")

    @agent.capability("text.rows")
    async def rows(most: int) -> AsyncIterator[dict[str, int]]:
        row = {}
        for number in range(most):
            row["number"] = number
            yield row

    async with TestFleet(agents=[agent]) as fleet:
        handle = await fleet.client.submit("text.rows", 3, stream=True)

        assert [row["number"] async for row in handle.stream()] == [0, 1, 2]
        assert [row["number"] for row in await fleet.request("text.rows", 3)] == [0, 1, 2]


async def test_middleware_sees_the_list_or_the_number() -> None:
    agent, seen = Writer().agent, []

    @agent.middleware
    async def watch(ctx: MiddlewareContext, call_next: CallNext) -> object:
        value = await call_next(ctx)
        seen.append(value)
        return value

    async with TestFleet(agents=[agent]) as fleet:
        assert await fleet.request("text.count", 2) == [0, 1]
        handle = await fleet.client.submit("text.count", 2, stream=True)
        assert [part async for part in handle.stream()] == [0, 1]

    assert seen == [[0, 1], 2]
