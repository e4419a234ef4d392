"""The marker queues at the broker, whose absence shows that the broker has lost its data.

A *marker* is an empty quorum queue, `coditect.epoch.<uuid>`. It goes when the broker loses its data, and nothing makes
it again. It is declared before a shard records it, so a recorded marker that is missing shows that everything which was
published before is missing, too. This may be wrong (a person deleted the queue): then nodes are published twice. A node
that had not begun runs once, since the older publication is stale; a running node runs again, and its first result is
refused.
"""

from __future__ import annotations

import asyncio
import logging

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.broker.topology import marker_queue
from coditect.errors import SetupError
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import MARKERS
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads

log = logging.getLogger(__name__)

MARKER_PREFIX = "coditect.epoch."


class BrokerEpoch:
    """The finder and maker of marker queues: one that is missing shows a dispatcher that the broker lost its data."""

    def __init__(self, broker: Broker, database: Database, clock: Clock) -> None:
        self._clock = clock
        self._broker = broker
        self._database = database
        self._looking = asyncio.Lock()
        self._latest = ""

    async def of_broker(self, known: str) -> str:
        """Return a marker queue that exists at the broker: the caller's `known` one, or one of a shard, or a new one.

        The known one, or "", is returned when no queue can be made, because the process may not declare queues: then
        a loss of the broker's data is not noticed.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
            CoditectError: any error of `Database.read`.
        """
        if await self.is_there(known):
            return known
        async with self._looking:
            others = {self._latest, *await self._database.read(recorded)} - {"", known}
            for other in sorted(others):
                if await self.is_there(other):
                    return other
            return await self._new(known)

    async def is_there(self, marker: str) -> bool:
        """Tell whether the broker has the marker queue; False for an empty name.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        return bool(marker) and await self._broker.stats(marker) is not None

    async def _new(self, known: str) -> str:
        marker = f"{MARKER_PREFIX}{self._clock.new_id()}"
        try:
            await self._broker.declare(marker_queue(marker))
        except SetupError as error:
            fix = "allow the dispatcher to declare, or run `coditect doctor --rebuild` when the broker lost its data"
            log.warning("No marker can be made", extra={"reason": str(error), "fix": fix})
            return known
        self._latest = marker
        log.info("The broker was given a marker", extra={"marker": marker, "before": known or None})
        return marker


def recorded(tr: Reads) -> list[str]:
    """Return the names of the marker queues that the shards have recorded in the ledger, each once."""
    found = [str(versions.MARKER.unpack(row)[0]) for _, row in tr.get_range(*MARKERS.range())]
    return list(dict.fromkeys(found))
