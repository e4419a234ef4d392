"""What becomes of a publish that the broker refuses: it waits for room, and its next try may be the second of its kind.

RabbitMQ says nothing of why it refuses (`basic.nack`): a full queue took nothing, but a classic queue's process that
died may have handed the message to a consumer before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError
from pamqp import frame
from pamqp.commands import Connection

from coditect.aio.supervisor import Health, Supervisor
from coditect.broker.rabbitmq.publisher_channel import Publish, PublishRefused
from coditect.broker.rabbitmq.publishing import (
    MAX_DEDICATED_CHANNELS,
    MAX_RENEW_SECONDS,
    PUBLISH_CHECK_SECONDS,
    RENEW_SECONDS,
    STUCK_GRACE_SECONDS,
    STUCK_SECONDS,
    ConfirmWindow,
    PublishChannels,
    Publisher,
    WindowedChannel,
)
from coditect.errors import Overloaded, PublishUnconfirmed
from coditect.model.message import Message
from coditect.wire import routing
from coditect.wire.tasks import SENT_AGAIN
from tests.unit.broker.direct.wire import Wire, ack
from tests.unit.broker.virtual_time import in_virtual_time


def unconfirmed(number: int, exchange: str, routing_key: str) -> Publish:
    unset: Any = None
    return Publish(Message(b""), exchange, routing_key, unset, 0, number=number)


class ScriptedConnection:
    """An open connection and its publishing channel in one, with an outcome for each try."""

    up, closed, ready, held_up, oldest = True, False, False, False, None
    address = "amqp://localhost/"

    def __init__(self, outcomes: Sequence[BaseException | None]) -> None:
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

    async def wait_for_room(self) -> bool:
        return True

    async def answers(self) -> bool:
        return True

    async def send(self, message: Message, **_: str) -> None:
        self.sent.append(message)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome


@asynccontextmanager
async def publishing(connection: Any, *, window: int = 100) -> AsyncIterator[Publisher]:
    async with Supervisor(Health()) as background:
        routes: Any = None
        publisher = Publisher(connection, background, window=window, restore_route=routes)
        publisher.open()
        yield publisher


def publish(
    publisher: Publisher, key: str, seconds: float, *, exchange: str = "", wait_when_full: bool = True
) -> asyncio.Future[None]:
    published = publisher.publish(
        Message(b"x"), exchange=exchange, routing_key=key, timeout_seconds=seconds, wait_when_full=wait_when_full
    )
    return asyncio.ensure_future(published)


async def tries(outcomes: Sequence[BaseException | None], *, wait_when_full: bool = True) -> list[bool]:
    """Whether each try of one publish was marked as one that is sent again."""
    connection = ScriptedConnection(outcomes)
    async with publishing(connection, window=10) as publisher:
        await publish(publisher, "q", 1.0, wait_when_full=wait_when_full)
    return [SENT_AGAIN in message.headers for message in connection.sent]


@in_virtual_time
async def test_publish_is_marked_from_its_first_refusal_on() -> None:
    assert await tries([PublishRefused(), PublishRefused(), None]) == [False, True, True]


@pytest.mark.parametrize(
    ("outcomes", "waits", "error"),
    [
        ([PublishRefused()], True, Overloaded),
        ([PublishRefused()], False, Overloaded),
        ([ConnectionResetError(), PublishRefused()], True, PublishUnconfirmed),
    ],
)
@in_virtual_time
async def test_publish_that_is_refused_to_the_end_is_overload_unless_it_was_lost_before(
    outcomes: list[BaseException], waits: bool, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await tries(outcomes, wait_when_full=waits)


class QueuesOfAKind(ScriptedConnection):
    """A connection to a broker of which some queues are full and one never answers; keeps the opened channels."""

    def __init__(self) -> None:
        super().__init__([None])
        self.opened: list[KindOfChannel] = []

    async def publisher_channel(self, _: object) -> ScriptedConnection:
        self.opened.append(KindOfChannel(self))
        return self.opened[-1]


class KindOfChannel(ScriptedConnection):
    """A channel that refuses publishes to `full...`, never confirms those to `hung`, and confirms all others.

    The first two channels refuse those to `stale`, and the first does not confirm those to `moved`: they ask the
    queue's dead leader.
    """

    def __init__(self, connection: QueuesOfAKind) -> None:
        super().__init__([None])
        self.connection = connection
        self.unconfirmed: list[asyncio.Future[None]] = []
        self.refused = ("full", "stale") if len(connection.opened) < 2 else ("full",)
        self.stuck = "moved" if not connection.opened else ""

    @property
    def oldest(self) -> Publish | None:  # type: ignore[override]  # the base has none for good
        return unconfirmed(1, "", self.stuck) if self.unconfirmed else None

    async def close(self) -> None:
        self.ended = self.closed = True
        for confirm in self.unconfirmed:
            if not confirm.done():
                confirm.set_exception(ChannelInvalidStateError("closed"))

    async def send(self, message: Message, *, routing_key: str = "", **_: str) -> None:
        if routing_key.startswith(self.refused):
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


@in_virtual_time
async def test_publish_that_a_channel_refuses_for_a_second_goes_over_a_new_one() -> None:
    connection, loop = QueuesOfAKind(), asyncio.get_running_loop()
    async with publishing(connection, window=10) as publisher:
        began = loop.time()
        await publish(publisher, "stale", 30.0)
        took = loop.time() - began
        await asyncio.sleep(PUBLISH_CHECK_SECONDS)

        assert [channel.ended for channel in connection.opened] == [True, True, False]
    assert took < 2 * RENEW_SECONDS + 2.0


@in_virtual_time
async def test_full_queues_and_one_that_does_not_answer_hold_up_no_other_publish() -> None:
    connection, loop = QueuesOfAKind(), asyncio.get_running_loop()
    async with publishing(connection, window=40) as publisher:
        waiting = [publish(publisher, f"full.{number}", 60.0) for number in range(10)]
        slowest, open_at_once = 0.0, 0
        while loop.time() < 60.0:
            waiting += [publish(publisher, "hung", 30.0) for _ in range(2)]
            began = loop.time()
            await publish(publisher, "free", 30.0)
            slowest = max(slowest, loop.time() - began)
            await asyncio.sleep(0.5)
            open_at_once = max(open_at_once, sum(not one.ended for one in connection.opened))
        ended = await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(one) for one in ended} <= {type(None), Overloaded, PublishUnconfirmed}
    assert slowest < 1.0
    assert open_at_once <= 10


@in_virtual_time
async def test_queue_whose_leader_died_is_reached_over_a_new_channel() -> None:
    async with publishing(QueuesOfAKind(), window=10) as publisher:
        for most_seconds in (STUCK_SECONDS + STUCK_GRACE_SECONDS + 2 * PUBLISH_CHECK_SECONDS, 0.1):
            async with asyncio.timeout(most_seconds):
                await publish(publisher, "moved", 30.0)


@in_virtual_time
async def test_full_queue_gets_new_channels_ever_more_rarely() -> None:
    connection = QueuesOfAKind()
    async with publishing(connection, window=10) as publisher:
        with pytest.raises(Overloaded):
            await publish(publisher, "full", 600.0)

        assert len(connection.opened) < 30
        assert len([one for one in connection.opened if not one.ended]) <= 2


class WiredConnection(ScriptedConnection):
    """A connection whose channels write to a wire; with an alarm, the broker answers nothing more on it."""

    def __init__(self) -> None:
        super().__init__([None])
        self.wire = Wire()
        self.numbers = count(1)
        self.alarmed = False

    async def publisher_channel(self, _: object) -> Any:
        if self.alarmed:
            await asyncio.get_running_loop().create_future()
        return self.wire.publisher_channel(next(self.numbers))

    def alarm(self) -> None:
        self.alarmed = True
        self.wire.say(frame.marshal(Connection.Blocked("memory"), 0))


@pytest.mark.parametrize("first_seconds", [1.0, 60.0], ids=["late", "in time"])
@pytest.mark.parametrize("exchange", ["", routing.RESULTS], ids=["full channel", "unopened channel"])
@in_virtual_time
async def test_publish_during_an_alarm_is_overload_whatever_lies_before_it(exchange: str, first_seconds: float) -> None:
    connection = WiredConnection()
    async with publishing(connection, window=2) as publisher:
        opening = publish(publisher, "q", 1.0)
        await asyncio.sleep(0.1)
        connection.wire.say(ack(1))
        await opening
        before = [publish(publisher, "q", first_seconds) for _ in range(2)]
        connection.alarm()
        await asyncio.sleep(2.0)

        with pytest.raises(Overloaded):
            await publish(publisher, "q", 1.0, exchange=exchange)

        blocked = [publisher.blocked]
        connection.alarmed = False
        connection.wire.say(frame.marshal(Connection.Unblocked(), 0), ack(2), ack(3))
        blocked.append(publisher.blocked)
        after = publish(publisher, "q", 1.0)
        await asyncio.sleep(0.1)
        connection.wire.say(ack(4))
        await after
        await asyncio.gather(*before, return_exceptions=True)
        assert blocked == [True, False]


class HungChannel(ScriptedConnection):
    """A channel that confirms nothing from the first publish on to a queue that did not answer when it was opened."""

    def __init__(self, connection: Hung) -> None:
        super().__init__([None])
        self.connection = connection
        self.hung = set(connection.hung)
        self.numbers = count(1)
        self.pending: dict[int, tuple[asyncio.Future[None], str, str]] = {}

    @property
    def oldest(self) -> Publish | None:  # type: ignore[override]  # the base has none for good
        for number, (_, exchange, key) in self.pending.items():
            return unconfirmed(number, exchange, key)
        return None

    async def close(self) -> None:
        self.ended = self.closed = True
        pending, self.pending = self.pending, {}
        for confirm, _, _ in pending.values():
            confirm.set_exception(ChannelInvalidStateError("closed"))

    async def send(self, message: Message, *, exchange: str = "", routing_key: str = "", **_: str) -> None:
        number = next(self.numbers)
        if self.pending or routing_key in self.hung:
            confirm = asyncio.get_running_loop().create_future()
            self.pending[number] = (confirm, exchange, routing_key)
            await confirm


class Hung(ScriptedConnection):
    """A connection to a broker of which some queues do not answer."""

    def __init__(self, *hung: str) -> None:
        super().__init__([None])
        self.hung = set(hung)
        self.opened: list[HungChannel] = []
        self.silent = False

    async def publisher_channel(self, _: object) -> ScriptedConnection:
        self.opened.append(HungChannel(self))
        return self.opened[-1]

    async def answers(self) -> bool:
        return not self.silent

    def answer(self) -> None:
        """Have all queues answer."""
        self.hung.clear()
        for channel in self.opened:
            channel.hung.clear()
            pending, channel.pending = channel.pending, {}
            for confirm, _, _ in pending.values():
                confirm.set_result(None)


async def until_another_channel(connection: Hung) -> float:
    """Return the seconds until the next channel is opened."""
    loop, before = asyncio.get_running_loop(), len(connection.opened)
    began = loop.time()
    while len(connection.opened) == before:
        await asyncio.sleep(0.1)
    return loop.time() - began


@in_virtual_time
async def test_queue_that_answered_gets_a_new_channel_as_soon_as_at_first_when_it_hangs_again() -> None:
    connection = Hung("hung")
    async with publishing(connection) as publisher:
        first = publish(publisher, "hung", 600.0)
        waits = [await until_another_channel(connection) for _ in range(6)]
        connection.answer()
        await first
        await asyncio.sleep(2 * PUBLISH_CHECK_SECONDS)
        for channel in connection.opened:
            channel.hung.add("hung")
        again = publish(publisher, "hung", 600.0)
        wait = await until_another_channel(connection)
        connection.answer()
        await again

    assert max(waits) > MAX_RENEW_SECONDS / 2
    assert wait < STUCK_SECONDS + STUCK_GRACE_SECONDS + 3 * PUBLISH_CHECK_SECONDS


@in_virtual_time
async def test_broker_that_answers_nothing_for_a_while_makes_no_channel_wait_longer() -> None:
    connection = Hung("hung")
    async with publishing(connection) as publisher:
        stuck = publish(publisher, "hung", 600.0)
        for _ in range(2):
            await until_another_channel(connection)
        connection.silent = True
        await asyncio.sleep(20.0)
        connection.silent = False
        wait = await until_another_channel(connection)
        connection.answer()
        await stuck

    assert wait < STUCK_SECONDS


@pytest.mark.parametrize(("looks", "seconds"), [([None], 12.0), ([1, None], STUCK_SECONDS), ([2], STUCK_SECONDS)])
@in_virtual_time
async def test_channel_on_which_nothing_was_confirmed_waits_on(looks: list[int | None], seconds: float) -> None:
    """Each look finds the number of the oldest unconfirmed publish, if any."""
    channel: Any = ScriptedConnection([None])
    windowed = WindowedChannel(ConfirmWindow(1), publisher_channel=channel, stuck_seconds=12.0)
    async with Supervisor(Health()) as background:
        for number in looks:
            channel.oldest = number and unconfirmed(number, "", "hung")
            PublishChannels(background, window=1)._stuck_route(windowed)

    assert windowed.stuck_seconds == seconds


@in_virtual_time
async def test_events_for_a_silent_listener_leave_channels_for_the_keys_of_tasks() -> None:
    keys = [f"event.{number}" for number in range(MAX_DEDICATED_CHANNELS + 4)]
    connection = Hung("task", *keys)
    async with publishing(connection) as publisher:
        events = [publish(publisher, key, 600.0, exchange=routing.EVENTS) for key in keys]
        await asyncio.sleep(MAX_DEDICATED_CHANNELS * 2 * STUCK_SECONDS)
        task = publish(publisher, "task", 600.0, exchange=routing.SUBMIT)
        await publish(publisher, "other", 10.0, exchange=routing.SUBMIT)
        connection.answer()
        await asyncio.gather(task, *events)


@in_virtual_time
async def test_channel_gives_way_although_no_more_keys_get_their_own() -> None:
    """The last queue has a new leader, which only a new channel knows."""
    keys = [f"event.{number}" for number in range(MAX_DEDICATED_CHANNELS)]
    connection = Hung("last", *keys)
    async with publishing(connection) as publisher:
        events = [publish(publisher, key, 600.0, exchange=routing.EVENTS) for key in keys]
        await asyncio.sleep(MAX_DEDICATED_CHANNELS * 2 * STUCK_SECONDS)
        last = publish(publisher, "last", 600.0, exchange=routing.EVENTS)
        await asyncio.sleep(PUBLISH_CHECK_SECONDS)
        connection.hung.remove("last")
        async with asyncio.timeout(MAX_RENEW_SECONDS):
            await last
        connection.answer()
        await asyncio.gather(*events)
