"""What becomes of requests and answers that cannot be sent, and who hears of events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any, cast

import pytest

from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import base_topology
from coditect.errors import InvalidTask, NotFound, Overloaded, SetupError, TooLarge
from coditect.messaging.event_publisher import Events
from coditect.messaging.event_stream import EventStreams
from coditect.model.message import Message
from coditect.model.result import Failure
from coditect.wire import control_messages, routing
from coditect.wire.control import Verb, request
from coditect.wire.control_messages import LogLevelOrder
from coditect.wire.json import MAX_JSON_LEVELS, loads
from coditect.wire.routing import ReturnAddresses
from coditect.wire.tasks import read_result
from dispatcher.ledger.commands import Asked, Command
from dispatcher.ports import Ports
from dispatcher.requests.interest import hearing_listeners
from dispatcher.requests.server import RequestServer
from dispatcher.shards.completions import Settle
from tests.support import eventually


@dataclass
class Narrow:
    """A broker that takes no answer of more than 1,000 bytes; or nothing at all."""

    full: bool = False
    published: list[Message] = field(default_factory=list)

    async def publish(self, message: Message, **_: Any) -> None:
        if self.full:
            raise Overloaded("It is full")
        if len(message.body) > 1_000:
            raise TooLarge("It is over the broker's limit")
        self.published.append(message)


@dataclass
class Request:
    """A delivery, and what was done with it."""

    message: Message = field(default_factory=lambda: Message(b"{}", message_id="m", reply_to="reply.me"))
    settled: list[str] = field(default_factory=list)

    def ack(self) -> None:
        self.settled.append("ack")

    def requeue(self) -> None:
        self.settled.append("requeue")


@asynccontextmanager
async def serving(
    broker: Narrow, *, database: Any = None, workers: Any = None, rebuild: Any = None
) -> AsyncIterator[RequestServer]:
    none: Any = None
    async with Supervisor() as background:
        ports = Ports(cast("Broker", broker), database, none, none, background, none)
        yield RequestServer(ports, workers, addresses=ReturnAddresses(), rebuild=rebuild)


def refusal(broker: Narrow) -> Failure:
    """What the one answer says."""
    (message,) = broker.published
    failure = read_result(message).failure
    assert failure is not None
    return failure


def asking(verb: Verb, body: Any) -> Request:
    return Request(request(verb, body, reply_to="reply.me", correlation_id="c"))


def arrived(control: RequestServer, asked: Request) -> None:
    control.arrived(cast("Delivery", asked))


async def answered(broker: Narrow, answer: Any) -> Request:
    request = Request()
    async with serving(broker) as control:
        control.answer(cast("Delivery", request), answer)
        await eventually(lambda: request.settled)
    return request


async def test_answer_that_can_never_be_sent_is_a_refusal_that_says_so_and_its_request_does_not_come_again() -> None:
    deep: Any = None
    for _ in range(MAX_JSON_LEVELS):
        deep = [deep]
    for value, kind in (("x" * 2_000, "TooLarge"), (deep, "InvalidTask")):
        broker = Narrow()
        request = await answered(broker, {"state": "completed", "value": value})

        failure = refusal(broker)
        assert (failure.type, failure.retryable, request.settled) == (kind, False, ["ack"])
        if kind == "TooLarge":
            assert failure.fix == "ask for less: one node, or a page"


async def test_request_of_a_newer_version_is_refused() -> None:
    newer = replace(request(Verb.STATUS, {}, reply_to="reply.me", correlation_id="c"), type="coditect.control.v2")
    broker, request_ = Narrow(), Request(newer)
    async with serving(broker) as control:
        arrived(control, request_)
        await eventually(lambda: request_.settled)

    failure = refusal(broker)
    assert (failure.type, failure.retryable, request_.settled) == ("InvalidTask", False, ["ack"])
    assert failure.message == "This is no request to the control plane"


async def test_request_on_which_its_handler_breaks_is_answered_and_leaves_the_queue() -> None:
    class Breaking:
        async def read(self, body: Any) -> Any:
            raise TypeError("unhashable type")

    broker, request_ = Narrow(), asking(Verb.DEAD, {})
    async with serving(broker, database=Breaking()) as control:
        arrived(control, request_)
        await eventually(lambda: request_.settled)

    failure = refusal(broker)
    assert (failure.type, request_.settled) == ("CoditectError", ["ack"])


async def test_answer_that_cannot_be_sent_now_is_asked_for_again() -> None:
    assert (await answered(Narrow(full=True), {"attempts": []})).settled == ["requeue"]


class Workers:
    """Takes every command of a fleet of one shard."""

    count = 1

    def __init__(self) -> None:
        self.taken: list[Command] = []

    def put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int) -> bool:
        self.taken.append(command)
        return True


ID = "019b76da-a800-7000-b7f0-7d4a2d10dbae"


async def test_trace_in_the_body_of_a_submission_is_not_believed() -> None:
    workers = Workers()
    async with serving(Narrow(), workers=workers) as control:
        body = {"workflow": ID, "name": "one", "trace": {"priority": "p0"}}  # would be a keyword of the nodes' tasks
        arrived(control, asking(Verb.START, body))

    assert workers.taken == [Asked(Verb.START, {**body, "trace": {}}, "")]


@pytest.mark.parametrize(
    "given", ["w", "zzz", ID.upper(), ID.replace("-", ""), f"{{{ID}}}", f"urn:uuid:{ID}", ID + "\n", "ü" * 300]
)
async def test_workflow_that_is_named_by_no_uuid_is_refused_at_the_door(given: str) -> None:
    broker, workers = Narrow(), Workers()
    async with serving(broker, workers=workers) as control:
        for workflow in (given, ID):
            arrived(control, asking(Verb.START, {"workflow": workflow, "name": "one"}))
        await eventually(lambda: broker.published)

    failure = refusal(broker)
    assert (failure.type, failure.message) == ("InvalidTask", "The id of a workflow is a UUID")
    assert workers.taken == [Asked(Verb.START, {"workflow": ID, "name": "one"})]


async def test_request_that_cannot_be_handed_on_is_refused_and_does_not_come_again() -> None:
    class Elsewhere(Workers):
        def put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int) -> bool:
            return False

    class Strict(Narrow):
        async def publish(self, message: Message, **to: Any) -> None:
            if to["exchange"] == routing.CONTROL:
                raise InvalidTask("AMQP cannot carry a property or header")
            await super().publish(message, **to)

    broker = Strict()
    asked = asking(Verb.CANCEL, {"workflow": ID})
    async with serving(broker, workers=Elsewhere()) as control:
        arrived(control, asked)
        await eventually(lambda: asked.settled)

    assert refusal(broker).type == "InvalidTask"
    assert asked.settled == ["ack"]


@dataclass
class Rebuilding:
    """One shard, whose rebuilds end when they may; its own worker."""

    count: int = 1
    shard: int = 0
    closed: bool = False
    occasions: list[str] = field(default_factory=list)
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def workers(self) -> dict[int, Rebuilding]:
        return {self.shard: self}

    async def rebuild(self, worker: Rebuilding, occasion: str) -> dict[str, Any]:
        self.occasions.append(occasion)
        await self.may_end.wait()
        return {"shard": worker.shard, "jobs": len(self.occasions)}


async def test_rebuild_that_is_asked_for_again_while_it_runs_is_done_once_and_told_to_each() -> None:
    broker, workers = Narrow(), Rebuilding()

    def asked(control: RequestServer, occasion: str) -> None:
        arrived(control, asking(Verb.REBUILD, {"shard": 0, "occasion": occasion}))

    async with serving(broker, workers=workers, rebuild=workers.rebuild) as control:
        for _ in range(3):
            asked(control, "one")
        await eventually(lambda: workers.occasions)
        asked(control, "one")
        workers.may_end.set()
        await eventually(lambda: len(broker.published) == 4)
        asked(control, "one")
        asked(control, "two")
        await eventually(lambda: len(broker.published) == 6)

    assert [loads(one.body)["jobs"] for one in broker.published[:4]] == [1] * 4
    assert workers.occasions == ["one", "one", "two"], "what is over is not kept"


@pytest.mark.parametrize("reply_to", ["my.answers", "reply.me"])
@pytest.mark.parametrize("error", [SetupError("The permissions do not allow it"), NotFound("No such exchange")])
async def test_answer_that_can_never_be_sent_makes_no_request_come_again(reply_to: str, error: Exception) -> None:
    tried: list[str] = []

    class Closed(Narrow):
        async def publish(self, message: Message, **_: Any) -> None:
            tried.append(message.body.decode())
            raise error

    requests = [Request(Message(b"{}", message_id=str(number), reply_to=reply_to)) for number in range(3)]
    async with serving(Closed()) as control:
        for one in requests:
            control.answer(cast("Delivery", one), {})
            await eventually(lambda one=one: one.settled)  # type: ignore[misc]

    assert [one.settled for one in requests] == [["ack"]] * 3
    assert len(tried) == (1 if reply_to == "my.answers" and isinstance(error, SetupError) else 3)


async def test_a_request_that_expires_is_to_be_done_before_its_sender_stops_waiting() -> None:
    workers, loop = Workers(), asyncio.get_running_loop()
    message = request(Verb.LOCK_ACQUIRE, {"ticket": "1"}, reply_to="reply.me", correlation_id="c")
    async with serving(Narrow(), workers=workers) as control:
        begun = loop.time()
        for expiration_ms in (2_000, None):
            arrived(control, Request(replace(message, expiration_ms=expiration_ms)))
        ended = loop.time()

    expiring, lasting = (command for command in workers.taken if isinstance(command, Asked))
    assert begun + 2 <= expiring.until <= ended + 2
    assert lasting.until == inf


async def test_a_release_by_force_that_arrives_again_is_the_same_request() -> None:
    workers = Workers()
    async with serving(Narrow(), workers=workers) as control:
        for body in ({"resource": "x", "reason": "it hangs"}, {"agent": "a", "reason": "it hangs"}, {"ticket": "1"}):
            for _ in range(2):
                message = request(Verb.LOCK_RELEASE, body, reply_to="reply.me", correlation_id=f"c{len(body)}")
                arrived(control, Request(message))

    identities = [command.identity for command in workers.taken if isinstance(command, Asked)]
    assert identities[0::2] == identities[1::2]
    assert [identity != "" for identity in identities[0::2]] == [True, True, False]


async def test_what_was_muted_is_told_to_whoever_begins_to_listen() -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker, MemoryBroker(server) as other:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            events.emit("node.started", subject="nobody hears it")
            await eventually(lambda: not events.heard("node.started"))

            async with EventStreams(other, name="client").stream("node.*") as stream:
                await eventually(lambda: events.heard("node.started"))
                events.emit("node.started", subject="w")
                event = await asyncio.wait_for(anext(stream), 60)

    assert event.subject == "w"


@pytest.mark.parametrize(
    "message",
    [control_messages.cancel("t"), replace(control_messages.listen(), type="coditect.listen.v2")],
    ids=["to agents", "of a newer version"],
)
async def test_other_control_messages_are_let_go(message: Message) -> None:
    server = MemoryServer()
    async with MemoryBroker(server) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            events.emit("node.started")
            await eventually(lambda: not events.heard("node.started"))
            await broker.publish(message, exchange=routing.BROADCAST, routing_key="")
            await eventually(lambda: server.queue("events.d").stats.messages + server.queue("events.d").in_hand == 0)

            assert not events.heard("node.started")


async def test_a_log_level_is_set() -> None:
    logger = logging.getLogger("coditect.messaging.rpc")
    async with MemoryBroker(MemoryServer()) as broker:
        await broker.declare(base_topology())
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with hearing_listeners(broker, events, owner="d"):
            for level, number in (("error", logging.ERROR), (None, logging.NOTSET)):
                order = control_messages.log_level(LogLevelOrder("messaging.rpc", level))
                await broker.publish(order, exchange=routing.BROADCAST, routing_key="")
                await eventually(partial(_is_at, logger, number))


def _is_at(logger: logging.Logger, level: int) -> bool:
    return logger.level == level
