"""Large inputs and values travel by their claim; inputs are validated in a thread, and the event loop has its turn."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationInfo, field_validator

from coditect import Agent, Client, Context, Retry
from coditect.aio.clock import SystemClock
from coditect.blobs import open_blobs
from coditect.broker.memory import MemoryBroker
from coditect.codec import LARGE_BYTES, codec
from coditect.errors import ClaimBroken, InvalidTask, TaskFailed, TaskRejected, TooLarge
from coditect.model.message import Message
from coditect.operations.dead_letters import DeadLetters, Selection
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import dumps, loads
from coditect.wire.tasks import CLAIM, MAX_BODY_BYTES, as_claim
from tests.support import eventually
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene, answers

LARGE = "x" * 2_000_000
MOST_BYTES = 3_000_000
CLAIMED = b'{"$claim": {"sha256": "%s", "bytes": 10}}' % (b"a" * 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


async def start(scene: Scene, agent: Agent, folder: Path) -> None:
    await scene.start(agent, blob_url=f"file://{folder}", blob_max_bytes=MOST_BYTES)


async def client_of(scene: Scene, folder: Path) -> Client:
    blobs = open_blobs(f"file://{folder}", most_bytes=MOST_BYTES)
    return await scene.stack.enter_async_context(Client(await scene.broker(), scene.registry, blobs=blobs))


async def served(scene: Scene, agent: Agent, folder: Path) -> Client:
    """A client of a running agent, both with a place for large values."""
    await start(scene, agent, folder)
    return await client_of(scene, folder)


def mirror() -> Agent:
    agent = Agent("mirror")

    @agent.capability("text.mirror", retry=Retry(max_attempts=2, first="100ms", cap="100ms"))
    async def reverse(text: str, ctx: Context) -> str:
        if text.startswith("fail") or (text.startswith("once") and ctx.attempt == 1):
            raise ValueError("as asked")
        return text[::-1]

    @agent.capability("text.relay")
    async def relay(text: str, ctx: Context) -> int:
        return len(await ctx.request("text.mirror", text + text, str))

    return agent


async def test_large_inputs_and_values_travel_by_claims_to_children_and_many_at_once(
    scene: Scene, folder: Path
) -> None:
    client = await served(scene, mirror(), folder)

    assert await client.request("text.mirror", "a" + LARGE, str) == LARGE + "a"
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2
    handles = [one async for one in client.submit_many("text.relay", ["y" * 700_000, "z" * 1_400_000])]
    assert [await one.result(int) for one in handles] == [1_400_000, 2_800_000]


async def test_what_is_not_large_touches_no_folder(scene: Scene, folder: Path) -> None:
    client = await served(scene, mirror(), folder)

    text = "x" * (MAX_BODY_BYTES - 2)

    assert await client.request("text.mirror", text, str) == text
    assert not folder.exists()


async def test_retry_dead_letter_and_redrive_keep_the_claim(scene: Scene, folder: Path) -> None:
    client = await served(scene, mirror(), folder)

    assert await client.request("text.mirror", "once" + LARGE, str) == LARGE + "ecno"
    with pytest.raises(TaskFailed):
        await client.request("text.mirror", "fail" + LARGE)
    async with MemoryBroker(scene.server, name="reader") as reader:
        delivery = await reader.get("dead.text.mirror")
        assert delivery is not None
        letter = delivery.message
    claim = as_claim(loads(letter.body))
    assert claim is not None
    assert claim.size_bytes == len(LARGE) + 6
    assert letter.headers[CLAIM] == "coditect.claim.v1"

    (folder / claim.name).write_text("now another")
    async with MemoryBroker(scene.server, name="redriver") as broker:
        settled = await DeadLetters(broker, SystemClock()).redrive(["dead.text.mirror"], Selection())
    assert settled.count == 1
    await eventually(lambda: scene.dead("text.mirror") == 1)
    assert (await scene.dead_letter("text.mirror")).headers["x-coditect-reason"] == "claim_broken"


async def test_handlers_in_processes_take_and_give_large_values(scene: Scene, folder: Path) -> None:
    client = await served(scene, worker, folder)

    assert await client.request("proc.echo", LARGE, str) == LARGE


async def test_agent_without_a_place_refuses_a_claim_and_names_the_setting(scene: Scene, folder: Path) -> None:
    await scene.start(mirror())
    client = await client_of(scene, folder)

    with pytest.raises(TaskRejected, match="CODITECT_BLOB_URL") as caught:
        await client.request("text.mirror", LARGE)

    assert (caught.value.facts["reason"], caught.value.retryable) == ("too_large", False)


async def test_client_without_a_place_refuses_a_large_input_and_names_the_setting(scene: Scene) -> None:
    client = await scene.serve(mirror())

    with pytest.raises(TooLarge, match="CODITECT_BLOB_URL"):
        await client.submit("text.mirror", LARGE)


async def test_value_that_is_gone_is_an_error_of_the_wait(scene: Scene, folder: Path) -> None:
    client = await served(scene, mirror(), folder)
    handle = await client.submit("text.mirror", "a" + LARGE)
    await eventually(lambda: handle.done)
    shutil.rmtree(folder)

    with pytest.raises(ClaimBroken):
        await handle.result(str)


async def test_place_that_refuses_is_an_attempt_like_another(scene: Scene, folder: Path) -> None:
    folder.write_text("in the way")
    agent = Agent("giver")
    attempts: list[int] = []

    @agent.capability("give.much", retry=Retry(max_attempts=2, first="100ms", cap="100ms"))
    async def much(_: None, ctx: Context) -> str:
        attempts.append(ctx.attempt)
        return LARGE

    await start(scene, agent, folder)

    with pytest.raises(TaskFailed) as caught:
        await scene.request("give.much")

    assert (caught.value.facts["reason"], caught.value.retryable) == ("blob_unavailable", True)
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({CLAIM: "coditect.claim.v2"}, CLAIMED),
        ({CLAIM: 1}, CLAIMED),
        ({CLAIM: "coditect.claim.v1"}, b""),
        ({CLAIM: "coditect.claim.v1"}, b'"$claim"'),
        ({CLAIM: "coditect.claim.v1"}, CLAIMED.replace(b"a" * 8, b"../../..")),
    ],
)
async def test_false_claim_is_a_dead_letter(scene: Scene, folder: Path, headers: dict[str, Any], body: bytes) -> None:
    await start(scene, mirror(), folder)
    broker = await scene.broker()
    arrived = await answers(broker)

    await broker.publish(Message(body, headers, reply_to="answers"), exchange=routing.TASKS, routing_key="text.mirror")

    await eventually(lambda: arrived)
    assert arrived[0].message.headers["x-coditect-status"] == "rejected"
    assert b'"invalid_task"' in arrived[0].message.body
    assert scene.dead("text.mirror") == 1


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
async def test_only_small_inputs_are_validated_on_the_loop(capability: str, size: int, tmp_path: Path) -> None:
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
