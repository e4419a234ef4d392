"""A group that lost its channel or a consumer: it hears again, and a queue that does not answer holds up no other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp.commands import Basic

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import QueueStats
from coditect.broker.rabbitmq import consuming as consumer_module
from coditect.broker.rabbitmq import declare
from coditect.broker.rabbitmq.channels import CHANNEL_CALL_SECONDS
from coditect.broker.rabbitmq.codec import Settlement
from coditect.broker.rabbitmq.connection import MAX_QUEUE_CHECKS, RabbitConnection
from coditect.broker.rabbitmq.consumer_channel import ConsumerChannel, Settlements, Source
from coditect.broker.rabbitmq.consuming import FORGET_SECONDS, QUEUE_ANSWER_SECONDS, Group, Subscription
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time


class FakeChannel:
    """Open until it is closed."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self.closing = asyncio.get_running_loop().create_future()
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self.broken = False

    @property
    def is_closed(self) -> bool:
        return self.closing.done() or self.broken

    async def close(self, timeout: float | None = None) -> None:
        if not self.closing.done():
            self.closing.set_result(None)


class FakeInlet:
    """Notes who consumes."""

    def __init__(self, scene: Scene, connection: AbstractConnection) -> None:
        self.scene = scene
        self.fake = FakeChannel(connection)
        self.channel = cast(Channel, self.fake)
        self.settlements = Settlements(lambda: None)
        self.tags: list[str] = []

    async def consume(self, consumer: Source, *, tag: str, prefetch: int, exclusive: bool) -> None:
        self.scene.tries[consumer.queue] += 1
        while consumer.queue in self.scene.hanging:
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                self.fake.broken = self.scene.breaking
                raise
        if consumer.queue in self.scene.lost_with_connection:
            raise TimeoutError
        self.tags.append(tag)

    async def cancel(self, tag: str) -> None:
        if self.scene.closing:
            raise asyncio.CancelledError
        self.tags.remove(tag)

    def forget(self, tag: str) -> None:
        self.tags.remove(tag)

    def lose(self) -> None:
        self.settlements.lose()


@dataclass
class Scene:
    """A group on a fake connection."""

    background: Supervisor
    inlets: list[FakeInlet] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    """How often the consumer of each queue was lost."""
    tries: Counter[str] = field(default_factory=Counter)
    """How often each queue was to be consumed."""
    unopened: int = 0
    """How many channels cannot be opened."""
    silent: set[str] = field(default_factory=set)
    """The queues of which a look gets no answer."""
    hanging: set[str] = field(default_factory=set)
    """The queues of which only the start of a consumer gets no answer."""
    lost_with_connection: set[str] = field(default_factory=set)
    """The queues at whose start the connection ends with a TimeoutError, as by the kernel's ETIMEDOUT."""
    breaking: bool = True
    """Whether a canceled start ends its channel: aiormq writes no more, and waits until the close is answered."""
    closing: bool = False
    """Whether the connection is being closed: aiormq ends pending calls by a CancelledError that nobody asked for."""
    answering: bool = True
    answer: Callable[[], Awaitable[bool]] | None = None
    questions: int = 0
    looking: int = 0
    most_looking: int = 0

    def __post_init__(self) -> None:
        self.connection = self.new_connection()
        self.rabbit = FakeRabbit(self)
        self.groups: dict[str, Group] = {}
        self.group = self.new_group("g")

    def new_group(self, name: str) -> Group:
        return Group(name, self.background, rabbit=self.rabbit, declare_again=self._declare_again, groups=self.groups)

    @property
    def open_channels(self) -> int:
        return sum(not one.channel.is_closed for one in self.inlets)

    @staticmethod
    def new_connection() -> AbstractConnection:
        return cast(AbstractConnection, SimpleNamespace(is_closed=False, is_opened=True))

    async def open(self, connection: AbstractConnection) -> FakeInlet:
        if self.unopened:
            self.unopened -= 1
            raise TimeoutError
        self.inlets.append(FakeInlet(self, connection))
        return self.inlets[-1]

    async def _declare_again(self, connection: AbstractConnection, queue: str) -> None:
        pass

    async def stats(self, connection: AbstractConnection, queue: str) -> QueueStats:
        self.looking += 1
        self.most_looking = max(self.most_looking, self.looking)
        try:
            await asyncio.sleep(0)
            if queue in self.silent:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    await asyncio.sleep(CHANNEL_CALL_SECONDS)  # the close of its channel has no answer, either
                    raise
        finally:
            self.looking -= 1
        return QueueStats(messages=0, consumers=0)

    async def subscribe(self, queue: str, group: Group | None = None) -> Subscription:
        group = group or self.group
        subscription = Subscription(
            group,
            queue,
            lambda _: None,
            prefetch=1,
            on_lost=lambda: self.lost.update([queue]),
            exclusive=False,
        )
        await group.subscribe(subscription)
        return subscription


class FakeRabbit(RabbitConnection):
    """A connection whose channels are the scene's."""

    def __init__(self, scene: Scene) -> None:
        super().__init__("amqp://localhost", name="fake", restore=cast(Any, None))
        self._scene = scene

    async def consumer_channel(self, connection: AbstractConnection) -> ConsumerChannel:
        return cast(ConsumerChannel, await self._scene.open(connection))

    async def answers(self) -> bool:
        self._scene.questions += 1
        return self._scene.answering if self._scene.answer is None else await self._scene.answer()


@asynccontextmanager
async def stage() -> AsyncIterator[Scene]:
    async with Supervisor() as background:
        scene = Scene(background)
        with patch.object(declare, "stats", scene.stats):
            await scene.group.restore(scene.connection)
            yield scene


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(consumer_module, "RESUBSCRIBE_SECONDS", 0.01)
    monkeypatch.setattr(consumer_module, "QUEUE_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(consumer_module, "LAST_CHECK_SECONDS", 0.02)
    async with stage() as scene:
        yield scene


@pytest.mark.parametrize("unopened", [0, 1, 3])
async def test_channel_is_opened_again_until_all_its_consumers_are_there(scene: Scene, unopened: int) -> None:
    consumers = [await scene.subscribe("one"), await scene.subscribe("two")]
    scene.unopened = unopened

    await scene.inlets[0].channel.close()

    await eventually(lambda: len(scene.inlets) == 2 and all(one.active for one in consumers))
    last = scene.inlets[-1]
    assert (last.channel.is_closed, len(last.tags)) == (False, 2)


async def test_channel_that_cannot_be_opened_on_a_new_connection_is_opened_later(scene: Scene) -> None:
    consumer = await scene.subscribe("one")
    scene.unopened = 2

    await scene.group.restore(scene.new_connection())

    await eventually(lambda: consumer.active and len(scene.inlets) == 2)


async def test_queues_that_do_not_answer_hold_up_no_other_and_are_consumed_when_they_do(scene: Scene) -> None:
    *quiet, other = [await scene.subscribe(queue) for queue in ("one", "two", "three")]
    scene.silent = {"one", "two"}

    await scene.group.restore(scene.new_connection())

    assert (other.active, other.away) == (True, False)
    assert [(one.active, one.away) for one in quiet] == [(False, True)] * 2
    scene.silent.clear()
    await eventually(lambda: all(one.active and not one.away for one in quiet))
    assert len(scene.inlets) == 2, "none of them closed the channel"


@pytest.mark.parametrize("consumers", [1, 2])
@in_virtual_time
async def test_queue_that_hangs_takes_the_channel_of_another_only_once(consumers: int) -> None:
    async with stage() as scene:
        hanging = [await scene.subscribe("hanging") for _ in range(consumers)]
        others = [await scene.subscribe(f"other {number}") for number in range(4)]
        scene.hanging = {"hanging"}

        await scene.inlets[0].channel.close()

        await eventually(lambda: scene.tries["hanging"] >= 10, seconds=100.0)
        assert all(one.active for one in others) and all(one.away for one in hanging)
        assert max(scene.tries[one.queue] for one in others) <= 3, "lost with the closed channel and once more"
        scene.hanging.clear()
        await eventually(lambda: all(one.active for one in hanging))


@in_virtual_time
async def test_deaf_consumer_whose_queue_hangs_takes_the_channel_of_another_only_once() -> None:
    async with stage() as scene:
        hanging, other = [await scene.subscribe(queue) for queue in ("hanging", "other")]
        scene.hanging = {"hanging"}

        with pytest.raises(TimeoutError):
            await scene.group.renew(hanging)

        await eventually(lambda: scene.tries["hanging"] >= 10, seconds=100.0)
        assert (other.active, scene.lost["other"], hanging.away) == (True, 1, True)


@in_virtual_time
async def test_many_queues_that_hang_take_no_longer_than_a_few() -> None:
    async with stage() as scene:
        hanging = [await scene.subscribe(f"hanging {number}") for number in range(20)]
        others = [await scene.subscribe(f"other {number}") for number in range(20)]
        scene.hanging = {one.queue for one in hanging}

        await scene.inlets[0].channel.close()

        await eventually(lambda: all(one.active for one in others), seconds=5 * QUEUE_ANSWER_SECONDS)
        await eventually(lambda: min(scene.tries[one.queue] for one in hanging) >= 5, seconds=100.0)
        assert all(one.active for one in others)
        assert max(scene.tries[one.queue] for one in others) <= 3, "lost with the closed channel and once more"


@pytest.mark.parametrize("behind_seconds", [0.0, 0.005, 0.5])
@pytest.mark.parametrize("still_seconds", [2.5, 3.5, 7.2])
@in_virtual_time
async def test_broker_that_stood_still_and_answers_the_question_first_costs_no_channel(
    still_seconds: float, behind_seconds: float
) -> None:
    async with stage() as scene:
        slow, _ = await scene.subscribe("slow"), await scene.subscribe("other")
        resumed = asyncio.Event()

        async def answer() -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await resumed.wait()
            return resumed.is_set()

        scene.answer, scene.hanging = answer, {"slow"}
        renewing = asyncio.create_task(scene.group.renew(slow))
        await asyncio.sleep(still_seconds)
        resumed.set()
        await asyncio.sleep(behind_seconds)
        scene.hanging.clear()
        await renewing

        assert (slow.active, slow.away, len(scene.inlets), scene.lost["other"]) == (True, False, 1, 0)


@in_virtual_time
async def test_question_that_fails_leaves_the_queue_unjudged_and_is_asked_again() -> None:
    async with stage() as scene:
        hanging = await scene.subscribe("hanging")

        async def answer() -> bool:
            if scene.questions == 1:
                raise RuntimeError("no channel is free")
            return True

        scene.answer, scene.hanging = answer, {"hanging"}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5 * QUEUE_ANSWER_SECONDS) as limit:
                await scene.group.renew(hanging)

        assert (hanging.away, limit.expired()) == (True, False)


@in_virtual_time
async def test_groups_of_queues_that_hung_end_with_their_consumers() -> None:
    async with stage() as scene:
        other = await scene.subscribe("other")
        for number in range(5):
            listener = await scene.subscribe(f"listener {number}")
            scene.hanging = {listener.queue}
            with pytest.raises(TimeoutError):
                await scene.group.renew(listener)
            scene.hanging.clear()
            await eventually(lambda listener=listener: listener.active and other.active)  # type: ignore[misc]
            await listener.cancel()

        await eventually(lambda: list(scene.groups) == ["g"])
        again = await scene.subscribe("listener 0")
        assert (again.group is scene.group, other.active, scene.open_channels) == (True, True, 1)


@in_virtual_time
async def test_group_of_a_queue_that_hung_ends_when_its_deliveries_are_settled() -> None:
    async with stage() as scene:
        other, hanging = [await scene.subscribe(queue) for queue in ("other", "hanging")]
        scene.hanging = {"hanging"}
        with pytest.raises(TimeoutError):
            await scene.group.renew(hanging)
        scene.hanging.clear()
        await eventually(lambda: hanging.active and other.active)
        settlements = hanging.group._consumer_channel.settlements  # type: ignore[union-attr]  # it is active
        settlements.add(1)

        await hanging.cancel()
        await asyncio.sleep(5.0)
        before = scene.open_channels
        settlements.settle(1, Settlement.ACK)
        settlements.decided()
        settlements.written()

        await eventually(lambda: list(scene.groups) == ["g"])
        assert (before, scene.open_channels) == (2, 1)


@in_virtual_time
async def test_new_consumers_whose_queue_hangs_leave_no_group_and_no_channel() -> None:
    async with stage() as scene:
        other = await scene.subscribe("other")
        scene.hanging = {"hanging"}
        until = asyncio.get_running_loop().time() + 3 * FORGET_SECONDS
        while asyncio.get_running_loop().time() < until:
            with pytest.raises(TimeoutError):
                await scene.subscribe("hanging")
            await asyncio.sleep(0.05)
        await eventually(lambda: other.active)

        assert (scene.lost["other"], scene.open_channels) == (1, 1)
        await eventually(lambda: list(scene.groups) == ["g"], seconds=2 * FORGET_SECONDS)


async def test_consumer_that_is_canceled_while_its_connection_closes_cancels_nobody_else(scene: Scene) -> None:
    """An agent whose start fails because the broker is away cancels its consumers, and ends with that reason."""
    consumer = await scene.subscribe("one")
    scene.closing = True

    await consumer.cancel()

    assert not consumer.active


async def test_group_without_consumers_opens_no_channel_on_a_new_connection(scene: Scene) -> None:
    consumer = await scene.subscribe("one")
    await consumer.cancel()
    await scene.inlets[0].channel.close()

    await scene.group.restore(scene.new_connection())

    assert (len(scene.inlets), scene.background.health.deaths.total()) == (1, 0)
    assert (await scene.subscribe("two")).active


@in_virtual_time
async def test_queues_that_hang_keep_no_other_group_from_its_look() -> None:
    async with stage() as scene:
        other = scene.new_group("other")
        await other.restore(scene.connection)
        healthy = await scene.subscribe("healthy", other)
        for number in range(3 * MAX_QUEUE_CHECKS):
            await scene.subscribe(f"silent {number}")
        scene.silent = {one.queue for one in scene.group.subscriptions}
        await scene.group.restore(scene.new_connection())
        await asyncio.sleep(2 * CHANNEL_CALL_SECONDS)

        await scene.inlets[0].channel.close()

        await asyncio.sleep(QUEUE_ANSWER_SECONDS)
        assert (scene.lost["healthy"], healthy.active) == (1, True)


@in_virtual_time
async def test_channel_of_a_queue_that_hung_is_closed() -> None:
    """Also where the library did not close it, because the call ended just then."""
    async with stage() as scene:
        hanging = await scene.subscribe("hanging")
        scene.hanging, scene.breaking = {"hanging"}, False

        with pytest.raises(TimeoutError):
            await scene.group.renew(hanging)

        scene.hanging.clear()
        await eventually(lambda: hanging.active)
        assert scene.inlets[0].channel.is_closed


@in_virtual_time
async def test_lost_connection_does_not_divide_the_group_of_a_queue_that_was_away() -> None:
    async with stage() as scene:
        away, other = [await scene.subscribe(queue) for queue in ("away", "other")]
        away.away, scene.lost_with_connection = True, {"away"}

        with pytest.raises(TimeoutError):
            await scene.group.renew(away)

        assert (list(scene.groups), away.group, other.group) == (["g"], scene.group, scene.group)
        scene.lost_with_connection.clear()
        await eventually(lambda: away.active and other.active)


class SlowChannel(FakeChannel):
    """A channel of a broker that stands still for a while, but no longer than its connection would last."""

    number = 1

    async def basic_qos(self, *, timeout: float | None = None, **_: Any) -> None:
        async with asyncio.timeout(timeout):
            await asyncio.sleep(2 * CHANNEL_CALL_SECONDS - 5)

    async def basic_consume(self, *_: Any, **more: Any) -> None:
        await self.basic_qos(timeout=more.get("timeout"))


@in_virtual_time
async def test_channel_waits_for_a_broker_that_stands_still() -> None:
    subscription = Subscription(cast(Group, None), "slow", lambda _: None, prefetch=1, on_lost=None, exclusive=False)
    standing: Any = SimpleNamespace(attach=lambda *_: None)

    async def no_answer() -> bool:
        return False

    channel = ConsumerChannel(cast(Any, SlowChannel(cast(Any, None))), standing)
    await subscription.start(channel, "tag", answers=no_answer)

    assert subscription.active


async def test_queues_of_a_slow_broker_are_not_away(scene: Scene) -> None:
    consumer = await scene.subscribe("one")
    scene.answering, scene.silent = False, {"one"}

    await scene.group.restore(scene.new_connection())

    assert (consumer.active, consumer.away) == (False, False)
    scene.silent.clear()
    await eventually(lambda: consumer.active)


async def test_restore_looks_at_a_bounded_number_of_queues_at_once(scene: Scene) -> None:
    consumers = [await scene.subscribe(f"queue {number}") for number in range(MAX_QUEUE_CHECKS + 50)]

    await scene.group.restore(scene.new_connection())

    assert all(one.active for one in consumers)
    assert scene.most_looking == MAX_QUEUE_CHECKS


async def test_channel_that_a_new_consumer_could_not_open_is_opened_by_its_watcher(scene: Scene) -> None:
    consumer = await scene.subscribe("one")
    scene.unopened = 1

    await scene.inlets[0].channel.close()
    with pytest.raises(TimeoutError):
        await scene.subscribe("two")  # before the watcher has noticed

    await eventually(lambda: consumer.active and scene.inlets[-1].tags)
    await scene.inlets[-1].channel.close()
    await eventually(lambda: len(scene.inlets) == 3 and consumer.active)


async def test_consumer_that_the_broker_ended_is_told_and_hears_again(scene: Scene) -> None:
    consumer, _ = await scene.subscribe("one"), await scene.subscribe("two")
    (end,) = scene.inlets[0].channel.on_consumer_cancel_callbacks

    end(Basic.Cancel(consumer_tag=consumer.tag))

    assert (consumer.active, scene.lost.total()) == (False, 1)
    await eventually(lambda: consumer.active)
    assert (len(scene.inlets), scene.lost.total()) == (1, 1)


async def test_deaf_consumer_that_is_renewed_is_told(scene: Scene) -> None:
    consumer = await scene.subscribe("one")

    await scene.group.renew(consumer)

    assert (consumer.active, len(scene.inlets[0].tags), scene.lost.total()) == (True, 1, 1)
