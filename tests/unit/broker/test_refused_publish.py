"""What becomes of a publish that the broker refuses: it waits for room, and its next try may be the second of its kind.

RabbitMQ says nothing of why it refuses (`basic.nack`): a full queue took nothing, but a classic queue's process that
died may have handed the message to a consumer before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError

from coditect.aio.supervisor import Health, Supervisor
from coditect.broker.rabbitmq.path import PublishRefused, Unconfirmed
from coditect.broker.rabbitmq.publishing.channels import GRACE_SECONDS, LOOK_SECONDS, RENEW_SECONDS, STUCK_SECONDS
from coditect.broker.rabbitmq.publishing.publisher import Publisher
from coditect.errors import Overloaded, PublishUnconfirmed
from coditect.model.message import Message
from coditect.wire.tasks import SENT_AGAIN
from tests.unit.broker.virtual_time import in_virtual_time


class ScriptedConnection:
    """An open connection, its wire path and its publishing channel in one, with an outcome for each try."""

    up, closed, ready, held_up, oldest = True, False, False, False, None
    address = "amqp://localhost/"

    def __init__(self, outcomes: Sequence[BaseException | None]) -> None:
        self.path: Any = self
        self.connection: Any = self
        self._outcomes = list(outcomes)
        self.sent: list[Message] = []
        self.ended = False
        self.on_silence: object = None

    def __call__(self) -> asyncio.Future[ScriptedConnection]:
        opened = asyncio.get_running_loop().create_future()
        opened.set_result(self)
        return opened

    async def publisher_channel(self, _: object) -> ScriptedConnection:
        return self

    async def close(self) -> None:
        self.ended = True

    async def gate(self) -> bool:
        return True

    async def answers(self) -> bool:
        return True

    async def send(self, message: Message, **_: str) -> None:
        self.sent.append(message)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome


async def published(outcomes: Sequence[BaseException | None], *, wait_when_full: bool = True) -> list[bool]:
    """Whether each try of one publish was marked as one that is sent again."""
    connection: Any = ScriptedConnection(outcomes)
    background = Supervisor(Health())
    routes: Any = None
    publisher = Publisher(connection, background, window=10, ways=routes)
    publisher.open()
    try:
        await publisher.publish(
            Message(b"x"), exchange="", routing_key="q", timeout_seconds=1.0, wait_when_full=wait_when_full
        )
    finally:
        await background.close()
        assert connection.sent
    return [SENT_AGAIN in message.headers for message in connection.sent]


class RefusingPath(ScriptedConnection):
    """A connection whose first two channels refuse everything."""

    def __init__(self) -> None:
        super().__init__([PublishRefused()])
        self.opened: list[ScriptedConnection] = []

    async def publisher_channel(self, _: object) -> ScriptedConnection:
        channel = ScriptedConnection([PublishRefused() if len(self.opened) < 2 else None])
        channel.connection = self
        self.opened.append(channel)
        return channel


@in_virtual_time
async def test_publish_that_a_channel_refuses_for_a_second_goes_over_a_new_one() -> None:
    connection: Any = RefusingPath()
    background = Supervisor(Health())
    routes: Any = None
    publisher = Publisher(connection, background, window=10, ways=routes)
    publisher.open()
    loop = asyncio.get_running_loop()
    began = loop.time()

    await publisher.publish(Message(b"x"), exchange="", routing_key="q", timeout_seconds=30.0, wait_when_full=True)

    took = loop.time() - began
    await asyncio.sleep(LOOK_SECONDS)
    ends = [channel.ended for channel in connection.opened]
    await background.close()
    assert (len(ends), ends) == (3, [True, True, False])
    assert took < 2 * RENEW_SECONDS + 2.0


class QueuesOfAKind(ScriptedConnection):
    """A connection to a broker of which some queues are full and one never answers; counts the opened channels."""

    def __init__(self) -> None:
        super().__init__([None])
        self.opened: list[KindOfChannel] = []

    async def publisher_channel(self, _: object) -> ScriptedConnection:
        self.opened.append(KindOfChannel(self))
        return self.opened[-1]


class KindOfChannel(ScriptedConnection):
    """A channel that refuses publishes to `full...`, never confirms those to `hung`, and confirms all others.

    The first channel does not confirm those to `moved`, either: it asks the queue's dead leader.
    """

    def __init__(self, connection: QueuesOfAKind) -> None:
        super().__init__([None])
        self.connection = connection
        self.unconfirmed: list[asyncio.Future[None]] = []
        self.stuck = "moved" if not connection.opened else ""

    @property
    def oldest(self) -> Unconfirmed | None:  # type: ignore[override]  # the base has none for good
        return Unconfirmed(1, "", self.stuck) if self.unconfirmed else None

    async def close(self) -> None:
        self.ended = self.closed = True
        for publish in self.unconfirmed:
            if not publish.done():
                publish.set_exception(ChannelInvalidStateError("closed"))

    async def send(self, message: Message, *, routing_key: str = "", **_: str) -> None:
        if routing_key.startswith("full"):
            raise PublishRefused
        if routing_key in ("hung", self.stuck):
            self.stuck = routing_key
            confirm = asyncio.get_running_loop().create_future()
            self.unconfirmed.append(confirm)
            try:
                await confirm
            finally:
                if confirm in self.unconfirmed:
                    self.unconfirmed.remove(confirm)


async def outcome(publish: Any) -> BaseException | None:
    try:
        await publish
    except (Overloaded, PublishUnconfirmed) as error:
        return error
    return None


@in_virtual_time
async def test_full_queues_and_one_that_does_not_answer_hold_up_no_other_publish() -> None:
    connection: Any = QueuesOfAKind()
    background = Supervisor(Health())
    routes: Any = None
    publisher = Publisher(connection, background, window=40, ways=routes)
    publisher.open()
    loop = asyncio.get_running_loop()

    def publish(key: str, seconds: float) -> Any:
        return publisher.publish(
            Message(b"x"), exchange="", routing_key=key, timeout_seconds=seconds, wait_when_full=True
        )

    waiting = [asyncio.create_task(outcome(publish(f"full.{number}", 60.0))) for number in range(10)]
    slowest, open_at_once = 0.0, 0
    while loop.time() < 60.0:
        waiting += [asyncio.create_task(outcome(publish("hung", 30.0))) for _ in range(2)]
        began = loop.time()
        await publish("free", 30.0)
        slowest = max(slowest, loop.time() - began)
        await asyncio.sleep(0.5)
        open_at_once = max(open_at_once, sum(not one.ended for one in connection.opened))
    await asyncio.gather(*waiting)
    await background.close()

    assert slowest < 1.0
    assert open_at_once <= 10


@in_virtual_time
async def test_queue_whose_leader_died_is_reached_over_a_new_channel() -> None:
    connection: Any = QueuesOfAKind()
    background = Supervisor(Health())
    routes: Any = None
    publisher = Publisher(connection, background, window=10, ways=routes)
    publisher.open()

    for most_seconds in (STUCK_SECONDS + GRACE_SECONDS + 2 * LOOK_SECONDS, 0.1):
        async with asyncio.timeout(most_seconds):
            await publisher.publish(
                Message(b"x"), exchange="", routing_key="moved", timeout_seconds=30.0, wait_when_full=True
            )

    await background.close()


@in_virtual_time
async def test_full_queue_gets_new_channels_ever_more_rarely() -> None:
    connection: Any = QueuesOfAKind()
    background = Supervisor(Health())
    routes: Any = None
    publisher = Publisher(connection, background, window=10, ways=routes)
    publisher.open()

    full = publisher.publish(Message(b"x"), exchange="", routing_key="full", timeout_seconds=600.0, wait_when_full=True)
    with pytest.raises(Overloaded):
        await full

    unclosed = [one for one in connection.opened if not one.ended]
    await background.close()
    assert len(connection.opened) < 30
    assert len(unclosed) <= 2


@in_virtual_time
async def test_publish_is_marked_from_its_first_refusal_on() -> None:
    assert await published([PublishRefused(), PublishRefused(), None]) == [False, True, True]


@pytest.mark.parametrize("wait_when_full", [True, False])
@in_virtual_time
async def test_publish_that_is_refused_to_the_end_is_overload(wait_when_full: bool) -> None:
    with pytest.raises(Overloaded):
        await published([PublishRefused()], wait_when_full=wait_when_full)


@in_virtual_time
async def test_publish_that_was_lost_and_is_refused_from_then_on_is_unconfirmed() -> None:
    with pytest.raises(PublishUnconfirmed):
        await published([ConnectionResetError(), PublishRefused()])
