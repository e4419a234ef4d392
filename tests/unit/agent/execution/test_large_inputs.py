"""Large inputs are validated in a thread, and the event loop has its turn meanwhile."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationInfo, field_validator

from coditect import Agent
from coditect.codec import LARGE_BYTES, codec
from coditect.errors import InvalidTask, TaskRejected
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire.json import dumps


class Noted(BaseModel):
    """Its validation notes the thread that it runs in."""

    text: str
    thread: str = ""

    @field_validator("thread", mode="before")
    @classmethod
    def _note(cls, _: object, __: ValidationInfo) -> str:
        return threading.current_thread().name


noting = Agent("noting", slots=2)


@noting.capability("note.loop")
async def on_the_loop(task: Noted) -> str:
    return task.thread


@noting.capability("note.thread")
def in_a_thread(task: Noted) -> str:
    return task.thread


@pytest.mark.parametrize("capability", ["note.loop", "note.thread"])
@pytest.mark.parametrize("size", [10, LARGE_BYTES, 3_000_000])
async def test_only_small_inputs_of_handlers_on_the_loop_are_validated_there(
    capability: str, size: int, tmp_path: Path
) -> None:
    settings = Settings(blob_url=f"file://{tmp_path}")
    async with TestFleet(agents=[noting], settings=settings) as fleet:
        where = await fleet.request(capability, {"text": "x" * size, "thread": ""}, str, timeout="1m")

    assert (where == "MainThread") == (capability == "note.loop" and size < LARGE_BYTES)


async def test_large_input_that_does_not_fit_is_refused_as_any_other() -> None:
    async with TestFleet(agents=[noting]) as fleet:
        for capability in ("note.loop", "note.thread"):
            with pytest.raises(TaskRejected) as refused:
                await fleet.request(capability, {"text": 1, "more": "x" * LARGE_BYTES}, timeout="1m")
            assert refused.value.facts["reason"] == "invalid_input"


@pytest.mark.parametrize("type_", [list[dict[str, list[int]]], dict[str, dict[str, list[int]]]])
async def test_loop_turns_while_a_large_list_is_validated(type_: object) -> None:
    """A thread alone would not do: validation keeps the interpreter's lock."""
    items = [{"numbers": [1, 2, 3], "more": [4, 5, 6]}] * 60_000
    raw = dumps(items if type_ == list[dict[str, list[int]]] else {str(n): one for n, one in enumerate(items)})
    decode = codec(type_).decode
    turns = 0
    decoding = asyncio.create_task(asyncio.to_thread(decode, raw))
    while not decoding.done():
        await asyncio.sleep(0.001)
        turns += 1

    assert len(await decoding) == len(items)
    assert turns >= 6, "validation in one piece leaves the loop two or three turns"


def test_large_list_is_judged_as_a_small_one_is() -> None:
    decode = codec(list[Noted]).decode

    with pytest.raises(InvalidTask) as small:
        decode(dumps([{"text": 1}]))
    with pytest.raises(InvalidTask) as large:
        decode(dumps([{"text": 1}, {"text": "x" * LARGE_BYTES}]))

    assert str(large.value) == str(small.value)
