"""The start of a store's incarnation by a dispatcher, numbered above the highest one that Redis remembers."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import Retryable
from dispatcher.ledger.ownership import incarnation
from dispatcher.ledger.ownership.incarnation import Incarnation
from dispatcher.store.port import Database
from dispatcher.taskgraph.port import TaskGraph

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""The most seconds for which the start of a dispatcher waits for Redis."""
AGAIN_SECONDS = 5.0
"""The seconds between two tries to record the incarnation in Redis."""


async def begin(database: Database, graph: TaskGraph | None, clock: Clock, background: Supervisor) -> Incarnation:
    """Begin a store's next incarnation; if Redis knows a higher number, treat the store as restored: republish all.

    Its number is above the store's last one and, if Redis answers, above the number in Redis. The new number is written
    to Redis in the background.

    Raises:
        CoditectError: any error of `Database.run`.
    """
    before = await database.read(incarnation.current)
    known = 0
    if graph is not None and before is not None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                known = await graph.incarnation(before.store)
        except (Retryable, TimeoutError) as error:
            fix = "when the store was restored from a backup: coditect store restore"
            log.info("Redis does not say what it knows of the store", extra={"reason": repr(error), "fix": fix})
    begun = await database.run(partial(incarnation.begin, new_id=clock.new_id(), known=known))
    if begun.is_restored:
        log.warning(
            "The store is older than Redis remembers it: it was restored, and all that is published is published again",
            extra={"store": begun.store, "incarnation": begun.number},
        )
    if graph is not None:
        told = asyncio.Event()
        name = "tell Redis of the store's incarnation"
        background.keep(partial(_tell, graph, begun, told), name=name, critical=False, until=told.is_set)
    return begun


async def _tell(graph: TaskGraph, begun: Incarnation, told: asyncio.Event) -> None:
    while not told.is_set():
        try:
            await graph.incarnation(begun.store, begun.number)
            told.set()
            return
        except Retryable as error:
            log.debug("Redis was not told of the incarnation yet", extra={"reason": str(error)})
        await asyncio.sleep(AGAIN_SECONDS)
