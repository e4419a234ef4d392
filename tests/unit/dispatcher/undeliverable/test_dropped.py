"""The tasks without an answer are counted: those whose copies the broker dropped."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import QueueStats
from coditect.telemetry.metrics import Counter
from coditect.wire import routing
from dispatcher.undeliverable.dropped import Dropped
from tests.support import eventually
from tests.unit.dispatcher.scene import Scene


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
async def test_every_task_of_a_flood_is_answered_or_counted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, bursts: tuple[int, ...]
) -> None:
    monkeypatch.setattr("coditect.broker.topology.MOST_NOTICES", 5)
    monkeypatch.setattr("dispatcher.undeliverable.dropped.LOOK_SECONDS", 0.05)
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
