"""Tasks that no agent ran are answered, once, whatever is in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Agent, Retry
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import QueueStats
from coditect.broker.topology import Binding, Queue, QueueType, Topology, base_topology, capability_queues
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import BrokerUnavailable, SetupError
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.registry.memory import MemoryRegistry
from coditect.telemetry.metrics import Counter
from coditect.testing import TestFleet
from coditect.wire import routing, tasks
from coditect.wire.json import dumps
from coditect.wire.tasks import read_result
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher import undeliverable
from dispatcher.ledger.commands import Finished
from dispatcher.undeliverable import Dropped, Notices
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, claim_of, completed, failed
from tests.unit.dispatcher.lone_ledger import tasks as tasks_of
from tests.unit.dispatcher.planes import lone_dispatcher
from tests.unit.registry.samples import IDLE, make_registration

CAPABILITY = "code.review"
REPLIES = "answers"


@dataclass(slots=True)
class Scene:
    """Everything of one test; it ends with the test."""

    stack: AsyncExitStack
    publisher: MemoryBroker
    server: MemoryServer
    registry: MemoryRegistry = field(default_factory=MemoryRegistry)
    answers: list[Message] = field(default_factory=list)

    async def dispatcher(self, broker: MemoryBroker | None = None) -> Notices:
        """Another dispatcher, at work when this returns."""
        own = await self.stack.enter_async_context(broker or MemoryBroker(self.server, name="dispatcher"))
        database = await self.stack.enter_async_context(SimulatedDatabase())
        running = lone_dispatcher(own, database, registry=self.registry)
        return (await self.stack.enter_async_context(running)).notices

    async def offer(self, capability: str = CAPABILITY) -> None:
        """An agent declared the capability and is gone again: the queues are there, nobody consumes."""
        await self.publisher.declare(base_topology() + capability_queues(capability))

    async def know(self) -> None:
        """An agent that offers `code.review` stands in the registry."""
        await self.registry.register(make_registration(), IDLE, lease_seconds=60)

    async def publish(self, key: str, *, exchange: str = routing.TASKS, **fields: Any) -> None:
        fields.setdefault("reply_to", REPLIES)
        message = Message(**{"body": b"{}", **fields})
        await self.publisher.publish(message, exchange=exchange, routing_key=key)

    async def answer(self) -> Outcome:
        """The one answer that came."""
        await eventually(lambda: self.answers)
        assert len(self.answers) == 1
        return read_result(self.answers[0])

    async def failure(self) -> Failure:
        """What the one answer says."""
        failure = (await self.answer()).failure
        assert failure is not None
        return failure

    def ready(self, queue: str) -> int:
        """How many messages lie in a queue."""
        found = self.server.find(queue)
        return 0 if found is None else found.stats.messages

    def left(self, queue: str) -> int:
        """How many messages lie in a queue, or are taken from it and not settled."""
        found = self.server.find(queue)
        return 0 if found is None else found.stats.messages + found.in_hand


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(MemoryBroker(server, name="publisher"))
        await publisher.declare(Topology(queues=(Queue(REPLIES, QueueType.CLASSIC),)))
        opened = Scene(stack, publisher, server)

        def take(delivery: Any) -> None:
            opened.answers.append(delivery.message)
            delivery.ack()

        await publisher.consume(REPLIES, take, prefetch=100)
        yield opened


DEAD_KEY = f"{CAPABILITY}.p1"


@pytest.mark.parametrize("failing", [False, True], ids=["", "the registry does not answer"])
async def test_unknown_capability_is_answered_with_the_nearest_names_and_the_fix(scene: Scene, failing: bool) -> None:
    await scene.know()
    scene.registry.failing = failing
    await scene.dispatcher()
    await scene.publish("code.reviews.p0", message_id="one", correlation_id="mine")
    outcome = await scene.answer()
    assert (outcome.status, outcome.correlation_id, outcome.task_id) == (Status.REJECTED, "mine", "one")
    assert outcome.failure is not None
    assert outcome.failure.reason == "unknown_capability"
    assert failing or "code.review" in outcome.failure.message
    assert outcome.failure.fix


@pytest.mark.parametrize("key", ["", "Code Review", "code..review.p1", "p1", "x" * 255])
async def test_key_that_names_no_capability_is_answered_with_what_a_key_is(scene: Scene, key: str) -> None:
    await scene.dispatcher()

    await scene.publish(key)

    failure = await scene.failure()
    assert failure.reason == "unknown_capability"
    assert "<capability>.<p0|p1|p2>" in failure.fix


async def test_unrouted_task_of_a_capability_that_agents_offer_says_so(scene: Scene) -> None:
    await scene.know()
    await scene.dispatcher()

    await scene.publish(DEAD_KEY)

    failure = await scene.failure()
    assert (failure.reason, failure.retryable) == ("unrouted", True)
    assert failure.message.startswith(f"Agents offer {CAPABILITY}")
    assert "nearest" not in failure.message
    assert "coditect topology apply" in failure.fix


@pytest.mark.parametrize(
    "headers",
    [{tasks.UNDECODABLE: "not UTF-8: message_id", tasks.REASON: "invalid_task"}, {tasks.REASON: "handler_error"}],
    ids=["undecodable", "failed"],
)
async def test_dead_letter_of_an_agent_is_not_answered_again(scene: Scene, headers: dict[str, Any]) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()

    await scene.publish(DEAD_KEY, exchange=routing.DEAD, headers=headers)

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.answers == []
    await eventually(lambda: scene.left(routing.DEAD_NOTICES) == 0)


async def test_report_that_the_dispatcher_does_not_know_is_no_task_without_an_agent(scene: Scene) -> None:
    dispatcher = await scene.dispatcher()

    await scene.publish("0", exchange=routing.RESULTS, type="coditect.strange.v1")

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.answers == []
    assert scene.ready(routing.UNROUTED_QUEUE) == 1


async def test_original_of_an_unrouted_task_stays_where_it_was_and_listeners_hear_of_it(scene: Scene) -> None:
    await scene.dispatcher()
    heard = Queue("heard", delivery_limit=10)
    await scene.publisher.declare(Topology(queues=(heard,), bindings=(Binding(routing.EVENTS, "heard", "task.#"),)))
    await scene.publish("no.body", message_id="one")
    await scene.answer()
    assert scene.ready(routing.UNROUTED_QUEUE) == 1
    await eventually(lambda: scene.left(routing.UNROUTED_NOTICES) == 0)
    await eventually(lambda: scene.ready("heard") == 1)


UNREADABLE = {tasks.UNDECODABLE: "not UTF-8: message_id"}
DEAD_LETTERS: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"expiration_ms": 1}, "expired"),
    "silenced by its publisher": ({"expiration_ms": 1, "headers": {tasks.REASON: "handler_error"}}, "expired"),
    "undecodable for the broker": ({"exchange": routing.DEAD, "headers": UNREADABLE}, "invalid_task"),
    "rejected by an agent without a word": ({}, "rejected"),
}


@pytest.mark.parametrize(("fields", "reason"), DEAD_LETTERS.values(), ids=DEAD_LETTERS)
async def test_dead_letter_of_the_broker_has_its_reason(scene: Scene, fields: dict[str, Any], reason: str) -> None:
    await scene.offer()
    await scene.dispatcher()
    if reason == "rejected":
        await scene.publisher.consume(f"tasks.{DEAD_KEY}", lambda delivery: delivery.reject(), prefetch=1)
    await scene.publish(DEAD_KEY, **fields)
    assert (await scene.failure()).reason == reason
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


@pytest.mark.parametrize("reply_to", [None, "dead.code.review", "tasks.code.review.p0", "unrouted"])
async def test_task_that_names_no_queue_for_answers_gets_none(scene: Scene, reply_to: str | None) -> None:
    await scene.offer()
    dispatcher = await scene.dispatcher()

    await scene.publish("no.body", reply_to=reply_to)

    await eventually(lambda: dispatcher.ignored.value == 1)
    assert scene.ready(f"tasks.{CAPABILITY}.p0") + scene.ready(f"dead.{CAPABILITY}") == 0
    assert scene.ready(routing.UNROUTED_QUEUE) == 1


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "not permitted"])
async def test_answer_that_nobody_can_receive_any_more_is_acked_and_counted(scene: Scene, gone: bool) -> None:
    refused = SetupError("The broker's permissions do not allow it")
    dispatcher = await (scene.dispatcher() if gone else _failing(scene, refused))
    await scene.publish("no.body", **({"reply_to": "gone.answers"} if gone else {}))
    await eventually(lambda: dispatcher.unclaimed.value == 1)
    await eventually(lambda: scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_answer_to_a_full_queue_is_unclaimed_and_holds_up_nobody(scene: Scene) -> None:
    full = Queue("full.answers", delivery_limit=1, max_length=1)
    await scene.publisher.declare(Topology(queues=(full,)))
    await scene.publish("full.answers", exchange="", reply_to=None)
    dispatcher = await scene.dispatcher()

    for _ in range(2 * undeliverable.NOTICES_PREFETCH):
        await scene.publish("no.body", reply_to="full.answers")
    await scene.publish("no.body")

    await scene.answer()
    assert dispatcher.unclaimed.value == 2 * undeliverable.NOTICES_PREFETCH


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


async def test_copy_that_comes_again_after_its_answer_is_not_answered_twice_and_equal_tasks_are(scene: Scene) -> None:
    broker = _Interrupted(scene.server, name="interrupted")
    dispatcher = await scene.dispatcher(broker)
    await scene.publish("no.body", message_id="same")
    await eventually(lambda: scene.answers and not broker.breaks)
    await eventually(lambda: broker.connected)
    await scene.publish("no.body", message_id="same")
    await eventually(lambda: len(scene.answers) >= 2 and scene.left(routing.UNROUTED_NOTICES) == 0)
    assert len(scene.answers) == dispatcher.answered.value == 2


class _Failing(MemoryBroker):
    """Cannot publish answers, for the given reasons, one after the other."""

    def __init__(self, server: MemoryServer, reasons: list[Exception]) -> None:
        super().__init__(server, name="failing")
        self.reasons = reasons

    async def publish(self, message: Message, **more: Any) -> None:
        if message.type == tasks.RESULT_TYPE and self.reasons:
            raise self.reasons.pop(0)
        await super().publish(message, **more)


async def _failing(scene: Scene, *reasons: Exception) -> undeliverable.Notices:
    return await scene.dispatcher(_Failing(scene.server, list(reasons)))


@pytest.mark.parametrize("failures", [2, 100])
async def test_answer_is_tried_again_and_dropped(scene: Scene, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    monkeypatch.setattr(undeliverable, "NOTICE_RETRY_SECONDS", 0.001)
    dispatcher = await _failing(scene, *(BrokerUnavailable("gone") for _ in range(failures)))
    await scene.publish("no.body")
    given = failures == 2
    await eventually(lambda: (dispatcher.answered.value, dispatcher.failed.value) == (given, not given))
    await eventually(lambda: len(scene.answers) == given and scene.left(routing.UNROUTED_NOTICES) == 0)


async def test_defect_in_the_dispatcher_drops_the_copy_and_goes_on(scene: Scene) -> None:
    dispatcher = await _failing(scene, ValueError("a defect"))

    await scene.publish("no.body", correlation_id="first")
    await scene.publish("no.body", correlation_id="second")

    assert (await scene.answer()).correlation_id == "second"
    assert dispatcher.failed.value == 1


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
        {routing.CAPABILITY: {"a": [None]}, "traceparent": b"\xff"},
    ]

    for number, headers in enumerate(hostile):
        await scene.publish("no.body", headers=headers, body=b"\xff" * 100, correlation_id=str(number))

    await eventually(lambda: len(scene.answers) == len(hostile))
    assert dispatcher.failed.value == 0


class Emptied(MemoryBroker):
    """A broker with so many originals, whose copies are all handed out or dropped."""

    originals = 0

    async def stats(self, queue: str) -> QueueStats | None:
        return QueueStats(self.originals if queue == routing.UNROUTED_QUEUE else 0, 1)


async def test_count_does_not_fall_when_copies_in_hand_come_again() -> None:
    broker, counter = Emptied(MemoryServer(), name="dispatcher"), Counter()
    dropped = Dropped(broker, counter)
    counts = list[int]()

    for originals, handed_out in ((0, 0), (10, 6), (10, 9), (17, 9)):
        broker.originals, dropped.handed_out = originals, handed_out
        await dropped._look()
        await dropped._look()
        counts.append(counter.value)

    assert counts == [0, 4, 4, 8]


@pytest.mark.parametrize("bursts", [(60,), (40, 3, 70), (2, 2)])
async def test_no_task_in_a_flood_gets_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, bursts: tuple[int, ...]
) -> None:
    monkeypatch.setattr("coditect.broker.topology.MOST_NOTICES", 5)
    monkeypatch.setattr("dispatcher.undeliverable.DROPPED_CHECK_SECONDS", 0.05)
    notices = await scene.dispatcher()
    await eventually(lambda: notices._dropped._base is not None)  # what is dropped before the first look is not known
    published = 0

    async def flood(size: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(size):
                group.create_task(scene.publish("no.body.p1", message_id=f"task-{number}"))

    async def accounted(total: int) -> None:
        await eventually(lambda: len(scene.answers) + notices.dropped.value == total)

    async def seen(kept: int) -> None:
        await eventually(lambda: notices._dropped._kept == kept)

    for taken_before, size in enumerate(bursts):
        published += size
        await flood(size)
        await accounted(published)
        await seen(published - taken_before)
        async with MemoryBroker(scene.server, name="person") as person:  # what a person takes away was not dropped
            original = await person.get(routing.UNROUTED_QUEUE)
            assert original is not None
            original.ack()
        await seen(published - taken_before - 1)

    assert len(scene.answers) + notices.dropped.value == published
    assert (notices.dropped.value > 0) == (max(bursts) > 20)


BODIES = (b"{", b"\xff", b"")


class Sleeper:
    """Its first execution never ends; whoever has it is killed."""

    def __init__(self) -> None:
        self.executions = 0
        self.agent = Agent("sleeper", slots=1)
        self.agent.capability("sleep", retry=Retry(max_attempts=2, first="10ms"))(self.sleep)

    async def sleep(self, task: dict[str, Any]) -> str:
        self.executions += 1
        if self.executions == 1:
            await asyncio.sleep(3600)
        return "slept"


def owner_of(run: WorkflowRun, shard: str, fence: int) -> dict[str, Any]:
    """The headers that say whose a message is."""
    place = {tasks.WORKFLOW_HEADER: run.id, tasks.NODE_HEADER: "only", tasks.ORIGIN: shard}
    return place | {tasks.FENCE: fence, tasks.PUBLICATION: 1}


async def node(run: WorkflowRun) -> Any:
    (row,) = [row async for row in run.nodes()]
    return row


async def taken(fleet: TestFleet, queue: str) -> Message:
    """The message in the queue, taken out of it."""
    async with MemoryBroker(fleet.server, name="person") as broker:
        delivery = await broker.get(queue)
        assert delivery is not None
        delivery.ack()
        return delivery.message


async def test_task_that_the_broker_gave_up_fails_its_node() -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        fleet.kill("sleeper")
        run = await fleet.client.start(tasks_of("sleep", only=""))
        await fleet.settled()

        async with MemoryBroker(fleet.server, name="thief") as broker:
            delivery = await broker.get(routing.task_queue("sleep", Priority.P1))
            assert delivery is not None
            delivery.reject()
        await fleet.settled()

        assert await run.wait(timeout="1m") is WorkflowState.REJECTED
        row = await node(run)
        assert (row.state, row.reason) == (TaskState.REJECTED, "rejected")


async def test_dead_letter_of_an_agent_that_names_an_owner_is_ignored() -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        run = await fleet.client.start(tasks_of("sleep", only=""))
        await fleet.advance(1)
        headers = owner_of(run, "0", 1)
        async with MemoryBroker(fleet.server, name="agent") as broker:
            await broker.publish(Message(b"null", headers), exchange=routing.DEAD, routing_key="sleep.p1")
        await fleet.settled()

        assert (await node(run)).state is TaskState.WORKING


@pytest.mark.parametrize(
    ("body", "kind"), [*((body, tasks.RESULT_TYPE) for body in BODIES), (b"null", "coditect.result.v2")]
)
async def test_result_that_nobody_can_read_is_a_failed_attempt_and_a_dead_letter(body: bytes, kind: str) -> None:
    sleeper = Sleeper()
    async with TestFleet(agents=[sleeper.agent]) as fleet:
        run = await fleet.client.start(tasks_of("sleep", only=""))
        await fleet.settled()
        shard = (await run.overview()).shard
        headers = owner_of(run, str(shard), (await node(run)).fence) | {tasks.STATUS: "completed"}
        message = Message(body, headers, type=kind, message_id="broken")
        async with MemoryBroker(fleet.server, name="agent") as broker:
            await broker.publish(message, exchange=routing.RESULTS, routing_key=str(shard))
        fleet.kill("sleeper")
        await fleet.restart("sleeper")

        assert await run.wait(timeout="1m") is WorkflowState.COMPLETED
        failures = [(one.attempt, one.reason) async for one in run.attempts() if one.status == "failed"]
        assert failures == [(1, "unreadable_result")]
        assert (await taken(fleet, routing.UNROUTED_QUEUE)).message_id == "broken"


@pytest.mark.parametrize("other", [0, 7])
async def test_result_without_a_fence_counts_for_its_publication_only(ledger: Ledger, other: int) -> None:
    published = await ledger.start_one()

    await ledger.batch(Finished(published.node_key, 0, other, completed()))
    assert (await ledger.node("one")).state is TaskState.PUBLISHED

    assert (await claim_of(ledger, published, AGENT)).fence == 2

    await ledger.batch(Finished(published.node_key, 0, published.number, failed()))
    assert (await ledger.node("one")).state is TaskState.FAILED


async def test_message_that_does_not_even_say_whose_it_is_becomes_a_dead_letter() -> None:
    async with TestFleet() as fleet, MemoryBroker(fleet.server, name="agent") as broker:
        for headers in (
            {},
            {tasks.WORKFLOW_HEADER: 7},
            {tasks.FENCE: "x", tasks.WORKFLOW_HEADER: "w", tasks.NODE_HEADER: "n"},
        ):
            message = Message(dumps(1), {**headers, tasks.STATUS: "completed"}, type=tasks.RESULT_TYPE)
            await broker.publish(message, exchange=routing.RESULTS, routing_key="0")
        await fleet.settled()

        stats = await broker.stats(routing.UNROUTED_QUEUE)
        assert stats is not None
        assert stats.messages == 3
