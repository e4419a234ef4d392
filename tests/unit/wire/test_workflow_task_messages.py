"""What is really sent about a workflow task fits the published schemas."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coditect.broker.port import Delivery
from coditect.broker.topology import Binding, Queue, QueueType, Topology
from coditect.errors import InvalidTask
from coditect.model.message import Message
from coditect.wire import control_messages, routing
from coditect.wire.json import loads
from coditect.wire.workflow_tasks import HandoffOffer
from tests.integration.wire.schemas import complaints, schema
from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.scene import Scene, open_scene
from tests.unit.agent.workflow_tasks.works import Works

KINDS = {
    "coditect.result.v1": "result",
    "coditect.results.v1": "results",
    "coditect.started.v1": "starts",
    "coditect.progress.v1": "progress",
    "coditect.control.v1": "claim",
}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_scene() as opened:
        yield opened


def _as_json(message: Message) -> dict[str, object]:
    given = {name: getattr(message, name) for name in ("type", "message_id", "correlation_id", "reply_to", "app_id")}
    properties = {name: value for name, value in given.items() if value is not None}
    return {"properties": properties, "headers": dict(message.headers), "body": loads(message.body)}


async def test_everything_about_a_workflow_task_fits_its_schema(scene: Scene) -> None:
    owner, works = ScriptedOwner(await scene.broker(), clock=scene.clock), Works()
    owner.decide = granting(fence=3)
    await owner.open()
    heard: list[Message] = []
    tap = Queue("tap", QueueType.CLASSIC)
    bindings = tuple(Binding(exchange, "tap", "0") for exchange in (routing.RESULTS, routing.CONTROL))
    await owner.broker.declare(Topology(queues=(tap,), bindings=bindings))

    def listen(delivery: Delivery) -> None:
        heard.append(delivery.message)
        delivery.ack()

    await owner.broker.consume("tap", listen, prefetch=100)
    await scene.start(works.agent)

    await owner.publish("work.do", "fail", node="one")
    await owner.publish("work.do", "tell", node="two")
    await owner.publish("work.do", "quick", node="three", age_ms=5_000)
    await owner.publish("work.do", "quick", node="four")
    await owner.publish("work.do", "wait", node="five")
    await owner.publish("work.do", "wait", node="six")
    await eventually(lambda: owner.started and owner.progress)
    works.gate.set()
    await eventually(lambda: len(owner.results) == 6)

    assert {message.type for message in heard} == set(KINDS)
    assert [complaints(KINDS[str(one.type)], _as_json(one)) for one in heard] == [[]] * len(heard)
    described = schema("result")["properties"]["headers"]["properties"]
    assert {name for one in heard if one.type == "coditect.result.v1" for name in one.headers} <= set(described)


def test_offer_of_a_running_task_fits_its_schema_and_reads_back() -> None:
    offer = HandoffOffer("flow:one.1", "flow:one", "ticket.bill", "desk-00000001", "money", {"tried": []}, 1, "refund")
    message = control_messages.message(control_messages.HANDOFF, offer.as_json())

    assert complaints("letter", _as_json(message)) == []
    assert HandoffOffer.read(loads(message.body)) == offer
    strange: tuple[object, ...] = (None, [], {"handoff": "flow:one.1"})
    for wrong in strange:
        with pytest.raises(InvalidTask, match="offers no task"):
            HandoffOffer.read(wrong)


def test_cancel_of_a_workflow_task_fits_its_schema() -> None:
    assert complaints("letter", _as_json(control_messages.cancel("flow:one", reason="enough", publication=4))) == []
    assert complaints("letter", _as_json(control_messages.cancel("one", correlation_id="a" * 32))) == []
