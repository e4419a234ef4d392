"""The count of undeliverable tasks that get no answer, because too many came and the broker dropped their copies.

``unrouted`` has every such task once. So the tasks that came to it, less the copies handed out of ``unrouted.notices``
and those waiting in it, were dropped. That holds while one dispatcher reads the copies, and no originals are removed:
after any other change the count goes on from its last value. Copies dropped before the first look are not known.
"""

from __future__ import annotations

import asyncio
import logging

from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.telemetry.metrics import Counter
from coditect.wire import routing

log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""The pause between two counts of dropped copies, each of which costs two calls to the broker."""


class Dropped:
    """The counter of undeliverable tasks whose copy the broker dropped before the dispatcher could read it."""

    def __init__(self, broker: Broker, counter: Counter) -> None:
        self._broker = broker
        self._counter = counter
        self.handed_out = 0
        """The number of copies that the broker delivered to this dispatcher and that were not requeued."""
        self._kept = 0
        self._base: int | None = None
        self._balance: int | None = None

    async def run(self) -> None:
        """Count the undeliverable tasks' copies that the broker dropped, every 15 s, until canceled."""
        while True:
            try:
                await self._look()
            except CoditectError:  # copies in hand come again: nothing that was handed out counts any more
                self._base = None
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        copies = await self._broker.stats(routing.UNROUTED_NOTICES)
        originals = await self._broker.stats(routing.UNROUTED_QUEUE)
        if copies is None or originals is None:
            self._base = None
            return
        before, self._balance = self._balance, originals.messages - self.handed_out - copies.messages
        if self._base is None or copies.consumers != 1 or originals.messages < self._kept:
            self._base = self._balance - self._counter.value
        elif copies.messages == 0 and self._balance == before:
            self._count(self._balance - self._base)
        self._kept = originals.messages

    def _count(self, dropped: int) -> None:
        if dropped > self._counter.value:
            facts = {"dropped": dropped - self._counter.value, "queue": routing.UNROUTED_QUEUE}
            log.warning("Tasks that no agent takes came too fast: some of their publishers get no answer", extra=facts)
            self._counter.value = dropped
