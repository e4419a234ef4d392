from __future__ import annotations

from typing import Any

import pytest

from coditect import From, Workflow
from coditect.client import workflows
from coditect.errors import InputError, InvalidTask, InvalidWorkflow, TooLarge
from coditect.wire.control import Verb
from coditect.wire.json import dumps
from coditect.wire.tasks import MAX_BODY_BYTES
from coditect.workflow.definition import Call, Definition, Node
from coditect.workflow.documents.reader import from_document
from tests.unit.client.scene import CAPABILITY, Scene, chain


async def test_a_small_workflow_is_one_request_with_all_of_it(scene: Scene) -> None:
    flow = Workflow("release", description="Ships.")
    review = flow.task(CAPABILITY, {"path": From("input.path")}, name="review")
    flow.approval("Ship it?", name="gate", after=[review], timeout="2d")

    run = await scene.client.start(flow, {"path": "src"}, idempotency_key="release-42")

    ((verb, body),) = scene.plane.asked
    assert verb is Verb.START
    assert (body["workflow"], body["chunk"], body["chunks"], body["count"]) == (run.id, 1, 1, 2)
    assert (body["input"], body["key"]) == ({"path": "src"}, "release-42")
    assert from_document({name: body[name] for name in ("name", "description", "nodes")}) == flow.definition()


async def test_a_large_one_goes_in_chunks_each_after_what_it_refers_to(scene: Scene) -> None:
    made = chain(2_500)
    definition = Definition(made.name, made.nodes[::-1])
    told: list[tuple[int, int]] = []

    await scene.client.start(definition, progress=lambda nodes, of: told.append((nodes, of)))

    bodies = [body for _, body in scene.plane.asked]
    assert told == [(1000, 2500), (2000, 2500), (2500, 2500)]
    assert [(body["chunk"], body["chunks"], body["count"]) for body in bodies] == [(n, 3, 2500) for n in (1, 2, 3)]
    assert ["input" in body for body in bodies] == [True, False, False]
    assert list(scene.plane.only.nodes) == [f"n{number}" for number in range(2_500)]


async def test_a_chunk_is_never_over_the_inline_limit(scene: Scene) -> None:
    text = "ü" * 150_000
    nodes = tuple(Node(f"n{number}", Call(CAPABILITY, {"text": text})) for number in range(8))

    await scene.client.start(Definition("heavy", nodes), {"text": text})

    sizes = [len(dumps(body)) for _, body in scene.plane.asked]
    assert len(sizes) == 3
    assert max(sizes) <= MAX_BODY_BYTES
    assert len(scene.plane.only.nodes) == 8


@pytest.mark.parametrize("spare", [0, 1])
def test_the_limit_is_used_to_the_last_byte(spare: int) -> None:
    """Two nodes that fit exactly, and two of which one is a byte too long."""

    def cut(length: int) -> workflows.Upload:
        nodes = tuple(Node(name, Call(CAPABILITY, "x" * length)) for name in "ab")
        return workflows.cut(Definition("two", nodes), None, workflow="w" * 36, key=None)

    largest = next(length for length in range(MAX_BODY_BYTES // 2, 0, -1) if len(cut(length).cuts) == 2)
    ((body, _), *rest) = cut(largest + spare).chunks()

    assert len(rest) == spare
    assert len(dumps(body)) <= MAX_BODY_BYTES
    assert spare or len(dumps(body)) > MAX_BODY_BYTES - 40


@pytest.mark.parametrize(
    ("definition", "value", "kind"),
    [
        (Definition("fine", (Node("a", Call(CAPABILITY)),)), {1: 2}, InvalidTask),
        (Definition("none", ()), None, InvalidWorkflow),
        (Definition("syntax", (Node("a", Call(CAPABILITY, {"$from": "input["})),)), None, InvalidWorkflow),
        (Definition("huge", (Node("a", Call(CAPABILITY, "x" * MAX_BODY_BYTES)),)), None, TooLarge),
        (Definition("input", (Node("a", Call(CAPABILITY)),)), "x" * MAX_BODY_BYTES, TooLarge),
        (Definition("nobody", (Node("a", Call("code.reveiw")),)), None, InvalidWorkflow),
    ],
    ids=["value", "empty", "syntax", "huge node", "huge input", "capability"],
)
async def test_what_cannot_be_started_is_refused_before_anything_is_sent(
    scene: Scene, definition: Definition, value: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        await scene.client.start(definition, value)

    assert scene.plane.asked == []


async def test_an_unknown_capability_is_told_with_its_place_and_the_nearest(scene: Scene) -> None:
    await scene.register(timeout_seconds=60)

    with pytest.raises(InvalidWorkflow) as raised:
        await scene.client.start(Definition("nobody", (Node("a", Call("code.reveiw")),)))

    (problem,) = raised.value.problems
    assert (problem.place, problem.fix) == ("nodes.a.task", "did you mean code.review?")


async def test_the_same_key_is_the_same_workflow_and_nothing_more_is_sent(scene: Scene) -> None:
    first = await scene.client.start(chain(2), idempotency_key="once")

    second = await scene.client.start(chain(2_500), idempotency_key="once")

    assert second.id == first.id
    assert (first.new, second.new, scene.client.workflows.get(first.id).new) == (True, False, False)
    assert len(scene.plane.asked) == 2


@pytest.mark.parametrize("key", ["", "x" * 1_001])
async def test_a_key_that_cannot_be_kept_is_refused(scene: Scene, key: str) -> None:
    with pytest.raises(InputError, match="another length"):
        await scene.client.start(chain(1), idempotency_key=key)
