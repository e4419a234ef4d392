"""Patrol: looks from time to time at what one shard has under way and nobody reports on.

=========================================  =====================================================
what it finds                              what it does
=========================================  =====================================================
published for 60 s, no start told, and     publishes it anew: the queue was deleted, or the
its queue is missing or empty              message was lost with it
working for longer than its early ack,     publishes it anew: its agent is gone, and nothing
and its agent silent for 60 s              redelivers what was acked
working, and its agent silent for longer   the same, as the node wants it
than the node's own `heartbeat`
=========================================  =====================================================

Both are safe when they are wrong: the older publication is stale, and what is told of it is late.
"""

from __future__ import annotations

import asyncio
import logging

from coditect.broker.port import Broker
from coditect.clock import Clock
from coditect.errors import CoditectError
from coditect.model import routing
from coditect.model.capability import Priority
from dispatcher.commands import Lost
from dispatcher.desk import Desk
from dispatcher.flights import Flight
from dispatcher.layers.ledger.effects import Place

log = logging.getLogger(__name__)

PATROL_SECONDS = 5.0
UNSTARTED_MS = 60_000
EARLY_ACK_MS = 600_000
"""From here on an agent has acked its delivery and reports every 20 s."""
SILENT_MS = 60_000


async def patrol(desk: Desk, broker: Broker, clock: Clock) -> None:
    """Walks until it is canceled."""
    while not desk.closed:
        await asyncio.sleep(PATROL_SECONDS)
        try:
            await look(desk, broker, clock.now_ms())
        except CoditectError as error:
            log.info("A patrol could not look", extra={"shard": desk.shard, "reason": str(error)})


async def look(desk: Desk, broker: Broker, now_ms: int) -> None:
    """One round."""
    empty: dict[str, bool] = {}
    for place, flight in desk.flights:
        if flight.heard_ms:
            _look_at_working(desk, place, flight, now_ms)
        elif now_ms - flight.published_ms > UNSTARTED_MS:
            queue = routing.task_queue(flight.capability, Priority(flight.level or "p1"))
            if queue not in empty:
                stats = await broker.stats(queue)
                empty[queue] = stats is None or stats.messages == 0
            if empty[queue]:
                log.warning("A publication is missing; it is repeated", extra={"task_id": place.task_id})
                desk.put(Lost(place, flight.publication))


def _look_at_working(desk: Desk, place: Place, flight: Flight, now_ms: int) -> None:
    long = now_ms - flight.published_ms > EARLY_ACK_MS
    if (long or flight.heartbeat_ms) and now_ms - flight.heard_ms > (flight.heartbeat_ms or SILENT_MS):
        log.warning("A task's agent is silent", extra={"task_id": place.task_id, "agent_id": flight.agent})
        desk.put(Lost(place, flight.publication, flight.agent))
