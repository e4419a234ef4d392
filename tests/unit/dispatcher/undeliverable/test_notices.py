"""Tasks that no agent ran are answered, once, whatever is in them."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import Binding, Queue, QueueType, Topology
from coditect.errors import BrokerUnavailable, SetupError
from coditect.model.message import Message
from coditect.model.result import Status
from coditect.wire import routing, tasks
from coditect.wire.addresses import target
from dispatcher.undeliverable import notices
from tests.support import eventually
from tests.unit.dispatcher.scene import CAPABILITY, Scene

DEAD_KEY = f"{CAPABILITY}.p1"


async def test_unknown_capability_is_answered_with_the_nearest_names_and_the_fix(scene: Scene) -> None:
    await scene.know()
    await scene.dispatcher()

    await scene.publish("code.reviews.p0", message_id="one", correlation_id="mine")

    outcome = await scene.answer()
    assert (outcome.status, outcome.correlation_id, outcome.task_id) == (Status.REJECTED, "mine", "one")
    assert outcome.failure is not None
    assert outcome.failure.reason == "unknown_capability"
    assert "code.review" in outcome.failure.message
    assert outcome.failure.fix


async def test_unknown_capability_is_answered_while_the_registry_does_not_answer(scene: Scene) -> None:
    scene.registry.failing = True
    await scene.dispatcher()

    await scene.publish("code.reviews.p0")

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert outcome.failure.reason == "unknown_capability"


@pytest.mark.parametrize("key", ["", "Code Review", "code..review.p1", "p1", "x" * 255])
async def test_key_that_names_no_capability_is_answered_with_what_a_key_is(scene: Scene, key: str) -> None:
    await scene.dispatcher()

    await scene.publish(key)

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert outcome.failure.reason == "unknown_capability"
    assert "<capability>.<p0|p1|p2>" in outcome.failure.fix


async def test_unrouted_task_of_a_capability_that_agents_offer_says_so(scene: Scene) -> None:
    await scene.know()
    await scene.dispatcher()

    await scene.publish(DEAD_KEY)

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.retryable) == ("unrouted", True)
    assert outcome.failure.message.startswith(f"Agents offer {CAPABILITY}")
    assert "nearest" not in outcome.failure.message
    assert "coditect topology apply" in outcome.failure.fix


async def test_undecodable_message_of_an_agent_was_answered_by_the_agent(scene: Scene) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()
    headers = {tasks.UNDECODABLE: "not UTF-8: message_id", tasks.REASON: "invalid_task"}

    await scene.publish(DEAD_KEY, exchange=routing.DEAD, headers=headers)

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.answers == []


async def test_report_that_the_dispatcher_does_not_know_is_no_task_without_an_agent(scene: Scene) -> None:
    dispatcher = await scene.dispatcher()

    await scene.publish("0", exchange=routing.RESULTS, type="coditect.strange.v1")

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.answers == []
    assert scene.ready(routing.UNROUTED_QUEUE) == 1


async def test_original_of_an_unrouted_task_stays_where_it_was(scene: Scene) -> None:
    await scene.dispatcher()

    await scene.publish("no.body")

    await scene.answer()
    assert scene.ready(routing.UNROUTED_QUEUE) == 1
    await eventually(lambda: scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_expired_task_is_answered_as_expired(scene: Scene) -> None:
    await scene.offer()
    await scene.dispatcher()

    await scene.publish(DEAD_KEY, expiration_ms=1, message_id="late")

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.reason) == (Status.REJECTED, "expired")
    assert scene.ready(routing.dead_queue(CAPABILITY)) == 1


async def test_task_that_came_back_too_often_is_answered_as_failed(scene: Scene) -> None:
    flaky = Queue("tasks.flaky.work.p1", delivery_limit=1, dead_letter_exchange=routing.DEAD)
    await scene.dispatcher()
    await scene.publisher.declare(Topology(queues=(flaky,)))
    await scene.publisher.consume(flaky.name, lambda delivery: delivery.requeue(), prefetch=1)

    await scene.publish(flaky.name, exchange="")

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.reason) == (Status.FAILED, "delivery_limit")


async def test_task_that_an_agent_rejected_without_a_word_is_answered(scene: Scene) -> None:
    await scene.offer()
    await scene.dispatcher()
    await scene.publisher.consume(f"tasks.{DEAD_KEY}", lambda delivery: delivery.reject(), prefetch=1)

    await scene.publish(DEAD_KEY)

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.reason) == (Status.REJECTED, "rejected")


async def test_dead_letter_of_an_agent_is_not_answered_again(scene: Scene) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()

    await scene.publish(DEAD_KEY, exchange=routing.DEAD, headers={tasks.REASON: "handler_error"})

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.answers == []
    await eventually(lambda: scene.left(routing.DEAD_NOTICES) == 0)


async def test_publisher_cannot_silence_the_answer_with_an_agents_header(scene: Scene) -> None:
    await scene.offer()
    await scene.dispatcher()

    await scene.publish(DEAD_KEY, expiration_ms=1, headers={tasks.REASON: "handler_error"})

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert outcome.failure.reason == "expired"


@pytest.mark.parametrize("reply_to", [None, "dead.code.review", "tasks.code.review.p0", "unrouted"])
async def test_task_that_wants_no_answer_or_names_a_queue_of_the_system_gets_none(
    scene: Scene, reply_to: str | None
) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()

    await scene.publish("no.body", reply_to=reply_to)

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.ready(f"tasks.{CAPABILITY}.p0") + scene.ready(f"dead.{CAPABILITY}") == 0
    assert scene.ready(routing.UNROUTED_QUEUE) == 1


async def test_answer_that_nobody_can_receive_any_more_is_acked_and_counted(scene: Scene) -> None:
    dispatcher = await scene.dispatcher()

    await scene.publish("no.body", reply_to="gone.answers")

    await eventually(lambda: dispatcher.unclaimed.value == 1)
    await eventually(lambda: scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_answer_to_a_full_queue_is_unclaimed_and_holds_up_nobody(scene: Scene) -> None:
    full = Queue("full.answers", delivery_limit=1, max_length=1)
    await scene.publisher.declare(Topology(queues=(full,)))
    await scene.publish("full.answers", exchange="", reply_to=None)
    dispatcher = await scene.dispatcher()

    for _ in range(2 * notices.PREFETCH):
        await scene.publish("no.body", reply_to="full.answers")
    await scene.publish("no.body")

    await scene.answer()
    assert dispatcher.unclaimed.value == 2 * notices.PREFETCH


async def test_reply_name_of_ours_is_answered_through_its_exchange(scene: Scene) -> None:
    await scene.dispatcher()
    mine = Queue("mine", QueueType.CLASSIC)
    binding = Binding(routing.REPLIES, mine.name, "reply.mine")
    await scene.publisher.declare(Topology(queues=(mine,), bindings=(binding,)))

    await scene.publish("no.body", reply_to="reply.mine")

    await eventually(lambda: scene.ready(mine.name) == 1)


async def test_two_dispatchers_answer_each_task_once(scene: Scene) -> None:
    first, second = await scene.dispatcher(), await scene.dispatcher()

    for number in range(40):
        await scene.publish("no.body", correlation_id=str(number))

    await eventually(lambda: len(scene.answers) == 40)
    assert sorted(int(one.correlation_id or "") for one in scene.answers) == list(range(40))
    assert first.answered.value + second.answered.value == 40


class _Interrupted(MemoryBroker):
    """Its connection breaks right after an answer was taken, before the copy is acked."""

    breaks = 1

    async def publish(self, message: Message, **more: Any) -> None:
        await super().publish(message, **more)
        if message.type == tasks.RESULT_TYPE and self.breaks:
            self.breaks -= 1
            self.drop()


async def test_copy_that_comes_again_after_its_answer_is_not_answered_twice(scene: Scene) -> None:
    broker = _Interrupted(scene.server, name="interrupted")
    dispatcher = await scene.dispatcher(broker)
    await scene.publish("no.body", correlation_id="before")
    await eventually(lambda: scene.answers and not broker.connected)
    await eventually(lambda: broker.connected)

    await scene.publish("no.body", correlation_id="after")

    await eventually(lambda: len(scene.answers) >= 2 and scene.left(routing.UNROUTED_NOTICES) == 0)
    assert [one.correlation_id for one in scene.answers] == ["before", "after"]
    assert dispatcher.answered.value == 2


async def test_equal_tasks_that_are_two_are_answered_twice(scene: Scene) -> None:
    await scene.dispatcher()

    await scene.publish("no.body", message_id="same")
    await scene.publish("no.body", message_id="same")

    await eventually(lambda: len(scene.answers) == 2)


class _Failing(MemoryBroker):
    """Cannot publish answers, for the given reasons, one after the other."""

    def __init__(self, server: MemoryServer, reasons: list[Exception]) -> None:
        super().__init__(server, name="failing")
        self.reasons = reasons

    async def publish(self, message: Message, **more: Any) -> None:
        if message.type == tasks.RESULT_TYPE and self.reasons:
            raise self.reasons.pop(0)
        await super().publish(message, **more)


async def _failing(scene: Scene, *reasons: Exception) -> notices.Notices:
    return await scene.dispatcher(_Failing(scene.server, list(reasons)))


async def test_answer_that_the_broker_cannot_take_now_is_given_later(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "PAUSE_SECONDS", 0.01)
    dispatcher = await _failing(scene, BrokerUnavailable("gone"), BrokerUnavailable("gone"))

    await scene.publish("no.body")

    await scene.answer()
    await eventually(lambda: dispatcher.answered.value == 1 and scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_answer_that_never_can_be_given_is_dropped_after_its_tries(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "PAUSE_SECONDS", 0.001)
    dispatcher = await _failing(scene, *(BrokerUnavailable("gone") for _ in range(100)))

    await scene.publish("no.body")

    await eventually(lambda: dispatcher.failed.value == 1)
    assert scene.answers == []
    await eventually(lambda: scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_answer_that_the_dispatcher_may_not_publish_is_unclaimed(scene: Scene) -> None:
    dispatcher = await _failing(scene, SetupError("The broker's permissions do not allow it"))

    await scene.publish("no.body")

    await eventually(lambda: dispatcher.unclaimed.value == 1)


async def test_defect_in_the_dispatcher_drops_the_copy_and_goes_on(scene: Scene) -> None:
    dispatcher = await _failing(scene, ValueError("a defect"))

    await scene.publish("no.body", correlation_id="first")
    await scene.publish("no.body", correlation_id="second")

    assert (await scene.answer()).correlation_id == "second"
    assert dispatcher.failed.value == 1


async def test_listener_hears_of_tasks_that_nobody_ran(scene: Scene) -> None:
    await scene.dispatcher()
    heard = Queue("heard", delivery_limit=10)
    await scene.publisher.declare(Topology(queues=(heard,), bindings=(Binding(routing.EVENTS, "heard", "task.#"),)))

    await scene.publish("no.body", message_id="one")

    await eventually(lambda: scene.ready("heard") == 1)


async def test_what_is_in_hand_is_answered_before_the_dispatcher_ends(scene: Scene) -> None:
    scene.registry.slow_seconds = 0.2
    await scene.dispatcher()
    await scene.publish("no.body")
    await eventually(lambda: scene.ready(routing.UNROUTED_NOTICES) == 0)

    await scene.stack.aclose()

    assert len(scene.answers) == 1


async def test_task_of_any_headers_and_body_is_answered_and_those_behind_it_are(scene: Scene) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()
    hostile: list[dict[str, Any]] = [
        {tasks.ATTEMPT: 2**62, tasks.ERROR: "[" * 1000, "x-first-death-reason": 7},
        {"x-death": "expired"},
        {"x-death": [7, {"reason": ["expired"]}, {}]},
        {"CC": ["\u2028", "x" * 200]},
        {tasks.UNDECODABLE: "the headers are nested too deeply"},
        {target.CAPABILITY: {"a": [None]}, "traceparent": b"\xff"},
    ]

    for number, headers in enumerate(hostile):
        await scene.publish("no.body", headers=headers, body=b"\xff" * 100, correlation_id=str(number))

    await eventually(lambda: len(scene.answers) == len(hostile))
    assert dispatcher.failed.value == 0


async def test_undecodable_message_of_the_broker_is_answered_as_invalid(scene: Scene) -> None:
    await scene.offer()
    await scene.dispatcher()

    await scene.publish(DEAD_KEY, exchange=routing.DEAD, headers={tasks.UNDECODABLE: "not UTF-8: message_id"})

    outcome = await scene.answer()
    assert outcome.failure is not None
    assert outcome.failure.reason == "invalid_task"
