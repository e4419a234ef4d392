"""A steady load on one queue, and what became of each message."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count, cycle

from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError
from coditect.model.message import Message

OUTAGE_SECONDS = 120.0
"""More than the start of a killed broker takes on a busy machine."""


class Load:
    """Publishers that each publish one message after the other, and a consumer that acks what comes."""

    def __init__(
        self, broker: Broker, queue: str, *, timeout_seconds: float = OUTAGE_SECONDS, sizes: Sequence[int] = (200,)
    ) -> None:
        """`sizes` are those of the bodies, in turn."""
        self._broker = broker
        self._bodies = cycle([b"x" * size for size in sizes])
        self._queue = queue
        self._timeout_seconds = timeout_seconds
        self._numbers = count(1)
        self._stopping = False
        self.confirmed: set[str] = set()
        self.failed: list[CoditectError] = []
        self.taken: Counter[str] = Counter()

    def take(self, delivery: Delivery) -> None:
        self.taken[str(delivery.message.message_id)] += 1
        delivery.ack()

    @property
    def lost(self) -> set[str]:
        """Confirmed, and never delivered."""
        return self.confirmed - self.taken.keys()

    @property
    def doubled(self) -> int:
        return sum(times - 1 for times in self.taken.values())

    @asynccontextmanager
    async def publishing(self, *, in_flight: int) -> AsyncIterator[None]:
        """Publishes for as long as the block lasts; at its end every publish under way has ended."""
        async with asyncio.TaskGroup() as publishers:
            for _ in range(in_flight):
                publishers.create_task(self._publish())
            yield
            self._stopping = True

    async def _publish(self) -> None:
        while not self._stopping:
            name = f"m-{next(self._numbers)}"
            try:
                await self._broker.publish(
                    Message(next(self._bodies), message_id=name),
                    exchange="",
                    routing_key=self._queue,
                    timeout_seconds=self._timeout_seconds,
                )
                self.confirmed.add(name)
            except CoditectError as error:
                self.failed.append(error)
