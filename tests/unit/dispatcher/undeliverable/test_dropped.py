from __future__ import annotations

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import QueueStats
from coditect.telemetry.metrics import Counter
from coditect.wire import routing
from dispatcher.undeliverable.dropped import Dropped


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
