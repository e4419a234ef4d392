"""What a handler that yields may yield: large parts, other types; and what is refused with what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, CallNext, Depends, MiddlewareContext, Options, Retry
from coditect.blobs import open_blobs
from coditect.client.client import Client
from coditect.errors import InputError, SetupError
from coditect.testing import TestFleet
from tests.unit.agent.scene import Scene

ONCE = Retry(max_attempts=1)


def counter() -> Agent:
    """An agent with a handler that yields and one that returns."""
    agent = Agent("writer")

    @agent.capability("text.count")
    async def count(most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    @agent.capability("text.whole")
    async def whole(text: str) -> str:
        return text

    return agent


async def test_a_large_part_goes_by_the_blob_store(scene: Scene, tmp_path: Path) -> None:
    agent = Agent("painter")

    @agent.capability("image.paint", retry=ONCE)
    async def paint(size: int) -> AsyncIterator[str]:
        yield "x" * size
        yield "done"

    await scene.start(agent, blob_url=str(tmp_path))
    async with Client(
        await scene.broker(), scene.registry, blobs=open_blobs(str(tmp_path), most_bytes=10_000_000)
    ) as client:
        handle = await client.submit("image.paint", 2_000_000, stream=True)

        assert [len(part) async for part in handle.stream()] == [2_000_000, 4]


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
    async with TestFleet(agents=[counter()]) as fleet:
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
    agent, seen = counter(), []

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


async def yields_text(task: int) -> str:  # type: ignore[misc]
    yield "x"


async def yields_bytes(task: int) -> AsyncIterator[bytes]:
    yield b"x"


async def yields_batch(tasks: list[int]):  # type: ignore[no-untyped-def]
    yield tasks


@pytest.mark.parametrize(
    ("handler", "how", "told"),
    [
        (yields_text, {}, "AsyncIterator"),
        (yields_bytes, {}, "JSON"),
        (yields_batch, {"batch": 2}, "this one yields"),
    ],
)
def test_handler_that_yields_what_it_may_not_is_refused(handler: Any, how: dict[str, Any], told: str) -> None:
    with pytest.raises(SetupError, match=told):
        Agent("wrong").capability("wrong.one", **how)(handler)
