"""A group that lost its channel or a consumer: it hears again, and a queue that does not answer holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from pamqp.commands import Basic

from coditect.aio.supervisor import Supervisor
from coditect.broker.port import QueueStats
from coditect.broker.rabbitmq import declare
from coditect.broker.rabbitmq.consuming import consumer as consumer_module
from coditect.broker.rabbitmq.consuming.consumer import Group, Subscription
from coditect.broker.rabbitmq.path import Receiver, WirePath
from coditect.broker.rabbitmq.settlements import Settlements
from tests.support import eventually


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
        self.started = False
        self.tags: list[str] = []

    def start(self, background: Supervisor) -> None:
        self.started = True

    async def consume(self, receiver: Receiver, *, tag: str, prefetch: int, exclusive: bool) -> None:
        if receiver.queue in self.scene.hanging:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.fake.broken = True  # aiormq writes no more, and waits for the broker to answer the close
        self.tags.append(tag)

    async def cancel(self, tag: str) -> None:
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
    lost: list[bool] = field(default_factory=list)
    unopened: int = 0
    """How many channels cannot be opened."""
    silent: set[str] = field(default_factory=set)
    """The queues of which a look gets no answer."""
    hanging: set[str] = field(default_factory=set)
    """The queues of which only the start of a consumer gets no answer."""

    def __post_init__(self) -> None:
        self.connection = self.new_connection()
        path = cast(WirePath, SimpleNamespace(consumer_channel=self._open))
        self.group = Group("g", self.background, path=path, declare_again=self._declare_again)

    @staticmethod
    def new_connection() -> AbstractConnection:
        return cast(AbstractConnection, SimpleNamespace(is_closed=False, is_opened=True))

    async def _open(self, connection: AbstractConnection) -> FakeInlet:
        if self.unopened:
            self.unopened -= 1
            raise TimeoutError
        self.inlets.append(FakeInlet(self, connection))
        return self.inlets[-1]

    async def _declare_again(self, connection: AbstractConnection, queue: str) -> None:
        pass

    async def stats(self, connection: AbstractConnection, queue: str) -> QueueStats:
        if queue in self.silent:
            await asyncio.get_running_loop().create_future()
        return QueueStats(messages=0, consumers=0)

    async def subscribe(self, queue: str) -> Subscription:
        subscription = Subscription(
            self.group,
            queue,
            lambda _: None,
            prefetch=1,
            on_lost=lambda: self.lost.append(True),
            exclusive=False,
        )
        await self.group.subscribe(subscription)
        return subscription


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(consumer_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(consumer_module, "ANSWER_SECONDS", 0.05)
    async with Supervisor() as background:
        scene = Scene(background)
        monkeypatch.setattr(declare, "stats", scene.stats)
        await scene.group.restore(scene.connection)
        yield scene


@pytest.mark.parametrize("unopened", [0, 1, 3])
async def test_channel_is_opened_again_until_all_its_consumers_are_there(scene: Scene, unopened: int) -> None:
    consumers = [await scene.subscribe("one"), await scene.subscribe("two")]
    scene.unopened = unopened

    await scene.inlets[0].channel.close()

    await eventually(lambda: len(scene.inlets) == 2 and all(one.active for one in consumers))
    last = scene.inlets[-1]
    assert (last.channel.is_closed, last.started, len(last.tags)) == (False, True, 2)


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


async def test_queue_that_hangs_when_it_is_consumed_leaves_the_channel_to_the_others(scene: Scene) -> None:
    hanging, other = [await scene.subscribe(queue) for queue in ("one", "two")]
    scene.hanging = {"one"}

    await scene.group.restore(scene.new_connection())

    await eventually(lambda: other.active and hanging.away)
    scene.hanging.clear()
    await eventually(lambda: hanging.active and other.active and not hanging.away)


async def test_channel_that_a_new_consumer_could_not_open_is_opened_by_its_watcher(scene: Scene) -> None:
    consumer = await scene.subscribe("one")
    scene.unopened = 1

    await scene.inlets[0].channel.close()
    with pytest.raises(TimeoutError):
        await scene.subscribe("two")  # before the watcher has noticed

    await eventually(lambda: consumer.active and scene.inlets[-1].started)
    await scene.inlets[-1].channel.close()
    await eventually(lambda: len(scene.inlets) == 3 and consumer.active)


async def test_consumer_that_the_broker_ended_is_told_and_hears_again(scene: Scene) -> None:
    consumer, _ = await scene.subscribe("one"), await scene.subscribe("two")
    (end,) = scene.inlets[0].channel.on_consumer_cancel_callbacks

    end(Basic.Cancel(consumer_tag=consumer.tag))

    assert (consumer.active, scene.lost) == (False, [True])
    await eventually(lambda: consumer.active)
    assert (len(scene.inlets), scene.lost) == (1, [True])


async def test_deaf_consumer_that_is_renewed_is_told(scene: Scene) -> None:
    consumer = await scene.subscribe("one")

    await scene.group.renew(consumer)

    assert (consumer.active, len(scene.inlets[0].tags), scene.lost) == (True, 1, [True])
