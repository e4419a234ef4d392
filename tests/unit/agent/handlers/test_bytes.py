"""Bytes as input and value of a task: in every kind of handler, over the limit of a message, and not in a workflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect import TaskFailed, TaskRejected, Workflow
from coditect.errors import InputError, InvalidTask
from coditect.model.message import Message
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from tests.owner import ScriptedOwner
from tests.support import eventually
from tests.unit.agent.handlers.bytes_agent import packer
from tests.unit.agent.scene import Scene, answers

NO_TEXT = b"\xff\x00{"


@pytest.mark.parametrize("kind", ["loop", "thread", "process", "ask", "ask.process"])
async def test_bytes_come_and_go_as_they_are(scene: Scene, kind: str) -> None:
    client = await scene.serve(packer)

    handle = await client.submit(f"bytes.{kind}", NO_TEXT)

    assert await handle.result(timeout="60s") in (NO_TEXT, NO_TEXT[::-1])
    assert (await handle.outcome()).binary


async def test_input_and_value_are_chosen_one_by_one() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        assert await fleet.request("bytes.size", NO_TEXT) == 3
        assert await fleet.request("bytes.make", 2) == b"\xff\xff"
        assert await fleet.request("bytes.size", NO_TEXT, bytes) == b"3", "the body of JSON, as it came"
        values = [await one.result() async for one in fleet.client.submit_many("bytes.loop", [b"ab", b"cd"])]
        assert values == [b"ba", b"dc"]


async def test_value_that_is_not_bytes_fails() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        with pytest.raises(TaskFailed, match="The value is not bytes"):
            await fleet.request("bytes.wrong")


async def test_bytes_over_the_limit_of_a_message_go_through_the_blob_store(tmp_path: Path) -> None:
    large = bytes(range(256)) * 5_000
    async with TestFleet(agents=[packer], settings=Settings(blob_url=f"file://{tmp_path}")) as fleet:
        assert await fleet.request("bytes.loop", large) == large[::-1]


async def test_foreign_client_needs_no_header_and_reads_the_content_type(scene: Scene) -> None:
    client = await scene.serve(packer)
    assert await client.request("bytes.size", b"") == 0
    broker = await scene.broker()
    arrived = await answers(broker)

    for capability, body in (("bytes.loop", NO_TEXT), ("bytes.size", NO_TEXT), ("bytes.wrong", b"null")):
        message = Message(body, correlation_id=capability, reply_to="answers", content_type=None)
        await broker.publish(message, exchange=routing.SUBMIT, routing_key=f"{capability}.p1", timeout_seconds=5)
    await eventually(lambda: len(arrived) == 3)

    told = {one.message.correlation_id: (one.message.content_type, one.message.body[:3]) for one in arrived}
    assert told == {
        "bytes.loop": ("application/octet-stream", NO_TEXT[::-1]),
        "bytes.size": ("application/json", b"3"),
        "bytes.wrong": ("application/json", b'{"r'),
    }


async def test_workflow_and_durable_task_refuse_bytes_as_they_are_submitted() -> None:
    flow = Workflow("pack")
    flow.task("bytes.size", "text")
    async with TestFleet(agents=[packer]) as fleet:
        with pytest.raises(InputError, match=r"passes JSON on.*bytes\.size.*direct task"):
            await fleet.start(flow)
        with pytest.raises(InputError, match=r"passes JSON on.*bytes\.make"):
            await fleet.submit("bytes.make", 3, durable=True)
        with pytest.raises(InvalidTask, match="the input of a durable task is JSON"):
            await fleet.submit("bytes.size", NO_TEXT, durable=True)


async def test_workflow_submitted_without_a_registry_is_rejected_by_the_agent() -> None:
    async with TestFleet(agents=[packer]) as fleet:
        fleet.registry.failing = True
        handle = await fleet.submit("bytes.size", "text", durable=True)
        with pytest.raises(TaskRejected, match="direct task"):
            await handle.result()


async def test_agent_rejects_a_workflow_task_and_never_runs_it(scene: Scene, owner: ScriptedOwner) -> None:
    await scene.start(packer)

    await owner.publish("bytes.make", 3)

    await eventually(lambda: owner.results)
    outcome = owner.results[0].outcome
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.binary) == ("invalid_input", False)
