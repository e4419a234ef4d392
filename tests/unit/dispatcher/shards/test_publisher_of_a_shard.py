"""What of one shard is sent while it is built anew, and what is not."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.model.task import Task
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.workflows import republish
from dispatcher.shards.completions import CommandAnswer
from dispatcher.shards.publishing.publisher import ShardPublisher
from tests.support import eventually
from tests.unit.dispatcher.lone_worker import CAPABILITY, open_worker


class Slow:
    """Takes publications, and confirms when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.recalled: list[str] = []
        self.confirm = asyncio.Event()

    async def publish(self, message: Any, **_: Any) -> None:
        self.begun.append(message.message_id)
        try:
            await self.confirm.wait()
        except asyncio.CancelledError:
            self.recalled.append(message.message_id)
            raise


class Scene:
    """Sendings to a slow broker."""

    def __init__(self) -> None:
        self.broker = Slow()
        self.sent: list[int] = []
        self.publisher = ShardPublisher(
            cast(Broker, self.broker), lambda publication, _: self.sent.append(publication.number)
        )

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.publisher.send(Publication(NodeKey("w", f"n{number}"), number, task(number)))

    async def begun(self, *numbers: int) -> None:
        await eventually(lambda: self.broker.begun == [str(number) for number in numbers])


def task(number: int) -> Task:
    return Task("work", Priority.P1, b"{}", id=TaskId(str(number)), correlation_id=TaskId(str(number)))


async def test_same_occasion_again_drops_nothing_of_what_the_first_one_publishes() -> None:
    scene = Scene()
    scene.publisher.hold(recall=False)
    assert scene.publisher.go_on(10) == []
    scene.send(11, 12)
    await scene.begun(11, 12)

    scene.publisher.hold(recall=False)
    scene.send(13)
    assert scene.publisher.go_on(10) == []

    await scene.begun(11, 12, 13)
    scene.broker.confirm.set()
    await eventually(lambda: sorted(scene.sent) == [11, 12, 13])
    assert scene.broker.recalled == []


@pytest.mark.parametrize("recall", [False, True])
async def test_what_was_published_before_is_dropped_and_what_comes_after_is_sent(recall: bool) -> None:
    scene = Scene()
    scene.send(1, 2)
    await scene.begun(1, 2)

    scene.publisher.hold(recall=recall)
    scene.send(3, 4)

    assert sorted(scene.publisher.go_on(3)) == [1, 2, 3]
    await scene.begun(1, 2, 4)
    scene.broker.confirm.set()
    await eventually(lambda: scene.sent == [4])
    assert scene.broker.recalled == ["1", "2"]


async def test_nothing_goes_to_a_broker_for_which_it_was_not_meant() -> None:
    scene = Scene()
    scene.send(1)
    await scene.begun(1)

    scene.publisher.hold(recall=True)

    await eventually(lambda: scene.broker.recalled == ["1"])
    await scene.publisher.settled(0.0)
    assert scene.sent == []


async def test_older_occasion_told_late_changes_nothing() -> None:
    scene = Scene()
    scene.publisher.hold(recall=False)
    scene.publisher.go_on(10)
    scene.publisher.go_on(5)

    scene.send(7)

    await scene.publisher.settled(0.0)
    assert scene.broker.begun == []


async def test_rebuild_that_is_asked_for_twice_publishes_once_what_the_first_one_began() -> None:
    async with open_worker() as lone:
        await lone.start()
        await eventually(lambda: lone.published() == 1)
        lone.server.stop()
        noted: CommandAnswer[int] = CommandAnswer()
        lone.worker.rebuild("marker", "a person", noted)
        last = await noted.future
        await eventually(lambda: lone.flight.publication > last)

        again: CommandAnswer[int] = CommandAnswer()
        lone.worker.rebuild("marker", "a person", again)
        assert await again.future == last
        lone.server.start()

        await eventually(lambda: lone.published() == 2)
        assert lone.flight.publication == last + 1
        assert lone.capacity.under_way(CAPABILITY) == 1


async def test_shard_publishes_again_though_its_rebuild_was_refused_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise ValueError("The fault that was asked for")

    async with open_worker() as lone:
        noted: CommandAnswer[int] = CommandAnswer()
        with monkeypatch.context() as patched:
            patched.setattr(republish, "begin", refuse)
            lone.worker.rebuild("marker", "a person", noted)
            with pytest.raises(CoditectError, match="failed on this"):
                await noted.future

        await lone.start()

        await eventually(lambda: lone.published() == 1)
