"""The reader of a stream puts parts in order, drops what comes twice or late, and holds no more than it allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coditect.blobs import NO_BLOBS
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import Binding, Queue, Topology, base_topology
from coditect.errors import InvalidTask, ResultTimeout, StreamRestarted
from coditect.messaging import rpc
from coditect.messaging.rpc import AHEAD, PartReader
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome, Status
from coditect.model.task import Task
from coditect.wire import routing
from coditect.wire.json import loads
from coditect.wire.tasks import Part, part_message
from tests.support import eventually

AGENT = AgentId("writer-1")
TASK = Task("text.write", Priority.P1, b"1", id=TaskId("task-1"), correlation_id="secret")


class Stage:
    """A reader, and the mailbox of the agent that it reads from."""

    def __init__(self, server: MemoryServer, broker: MemoryBroker) -> None:
        self.reader = PartReader(broker, NO_BLOBS, TaskId("task-1"))
        self.reply: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._server = server
        self._broker = broker

    def arrive(self, *numbers: int, execution: str = "one", attempt: int = 1) -> None:
        for number in numbers:
            part = Part(execution, number, AGENT, attempt, str(number).encode())
            self.reader.arrived(part_message(part, TASK))

    def word(self, number: int, *, last: bool = False) -> None:
        self.reader.arrived(part_message(Part("one", number, AGENT, 1, last=last), TASK))

    def complete(self) -> None:
        self.reply.set_result(Outcome(Status.COMPLETED, b"3", "task-1", "secret"))

    async def next(self, seconds: float = 5.0) -> int | None:
        body = await self.reader.next(self.reply, timeout_seconds=seconds)
        return None if body is None else int(body)

    async def credit(self) -> int:
        """The last credit that the agent got."""
        queue = routing.mailbox_queue(AGENT)
        await eventually(lambda: self._server.queue(queue).stats.messages)
        until = 0
        while (delivery := await self._broker.get(queue)) is not None:
            content = loads(delivery.message.body)
            assert content["execution"] == "one"
            until = content["until"]
            delivery.ack()
        return until


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    server = MemoryServer()
    async with MemoryBroker(server, name="reader") as broker:
        mailbox = routing.mailbox_queue(AGENT)
        await broker.declare(base_topology())
        binding = Binding(routing.AGENTS, mailbox, routing.mailbox_key(AGENT))
        await broker.declare(Topology((), (Queue(mailbox),), (binding,)))
        yield Stage(server, broker)


async def test_parts_that_come_late_or_twice_are_read_in_order_and_once(stage: Stage) -> None:
    stage.arrive(1, 0, 1, 0)
    read = [await stage.next(), await stage.next()]
    stage.arrive(0, 1, 2)

    assert [*read, await stage.next()] == [0, 1, 2]
    stage.word(3, last=True)
    assert await stage.next() is None


async def test_a_reader_holds_no_part_beyond_its_credit(stage: Stage) -> None:
    stage.arrive(*range(AHEAD + 10))

    for number in range(AHEAD):
        assert await stage.next() == number

    with pytest.raises(ResultTimeout):
        await stage.next(0.0)


async def test_credit_follows_the_reading_and_is_repeated_when_asked_for(stage: Stage) -> None:
    stage.arrive(*range(AHEAD))
    for _ in range(AHEAD // 2):
        await stage.next()

    assert await stage.credit() == AHEAD + AHEAD // 2

    stage.word(AHEAD)

    assert await stage.credit() == AHEAD + AHEAD // 2


async def test_late_parts_of_a_former_execution_are_dropped(stage: Stage) -> None:
    stage.arrive(0, 1)
    assert await stage.next() == 0
    stage.arrive(0, execution="two")
    stage.arrive(2, 3)

    with pytest.raises(StreamRestarted):
        await stage.next()
    assert await stage.next() == 0

    stage.arrive(1, execution="three", attempt=2)
    stage.arrive(1, execution="late", attempt=1)
    stage.arrive(0, execution="three", attempt=2)
    with pytest.raises(StreamRestarted):
        await stage.next()
    assert [await stage.next(), await stage.next()] == [0, 1]


async def test_an_execution_of_which_nothing_was_read_is_replaced_unseen(stage: Stage) -> None:
    stage.arrive(0, 1)
    stage.arrive(0, execution="two", attempt=2)

    assert await stage.next() == 0


async def test_parts_that_are_missing_at_the_end_are_reported(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LATE_SECONDS", 0.05)
    stage.arrive(0, 2)
    stage.word(3, last=True)
    stage.complete()

    assert await stage.next() == 0
    with pytest.raises(ResultTimeout, match="missing"):
        await stage.next()


async def test_a_reader_that_waits_is_woken_by_the_next_part(stage: Stage) -> None:
    waiting = asyncio.ensure_future(stage.next())
    await asyncio.sleep(0)
    stage.arrive(0)

    assert await waiting == 0


@pytest.mark.parametrize("missing", ["x-coditect-execution", "x-coditect-part", "x-coditect-agent"])
async def test_what_is_no_part_is_refused(stage: Stage, missing: str) -> None:
    message = part_message(Part("one", 0, AGENT, 1, b"0"), TASK)
    headers = {name: value for name, value in message.headers.items() if name != missing}

    with pytest.raises(InvalidTask):
        stage.reader.arrived(Message(b"0", headers))
