"""Patrol: looks from time to time at what one shard has under way and nobody reports on, and at what else is reported.

=============================================  ==================================================
what it finds                                  what it does
=============================================  ==================================================
no start told for 60 s, and the queue is       publishes it anew: the queue was deleted, or the
missing or empty                               message was lost with it
no start told for 60 s, and another one that   the same: what lay in the queue before that one is
was published to the queue later started over  not there any more, whatever lies there now
60 s ago
working for longer than its early ack, or      publishes it anew: its agent is gone, and nothing
since before a rebuild, and its agent silent   redelivers what was acked, or is not with the
for 60 s                                       broker
working, and its agent silent for longer than  the same, as the node wants it
the node's own `heartbeat`
working, its agent silent for 60 s, and does   the same: it was granted to one that had lost the
not have it when it is asked, or is gone, and  delivery, behind whoever had it by then and was
the queue is missing or empty                  refused
an agent that runs what is not under way       has it told to end, if nobody wants it any more
=============================================  ==================================================

All are safe when they are wrong: the older publication is stale, and what is told of it is late. They are wrong about
an end that waits in the shard's own queue to be heard: the last one looks into that, too. Time in which nobody
could be heard is no silence: while this process stood still, or the broker was away, and before the shard was ours. It
is counted by a clock that no one sets. An absence of the broker that is too short to be seen costs a beat at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.commands import Heard, Lost
from dispatcher.ledger.effects import NodeKey
from dispatcher.liveness.ping import PingAnswer, Pings
from dispatcher.shards.in_flight import Flight
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

PATROL_SECONDS = 5.0
PAUSE_SECONDS = 15.0
"""Steps of a patrol that are further apart have a pause between them."""
SILENT_SECONDS = 60.0
"""After so long without a word it is looked what became of a publication."""
MOST_ASKED = 200
"""Silent agents that one look asks, at the same time."""
EARLY_ACK_MS = 600_000
"""From here on an agent has acked its delivery and reports every 20 s."""


class OrphanDetector:
    """The patrol of one shard worker. `run` walks until it is canceled."""

    def __init__(self, worker: ShardWorker, broker: Broker, clock: Clock, pings: Pings) -> None:
        self._worker = worker
        self._broker = broker
        self._clock = clock
        self._pings = pings
        self._now = asyncio.get_running_loop().time
        self._stepped = self._marked = self._now()
        self._hears = True
        self._marks: Mapping[tuple[str, str], int] = {}
        self._old_marks: Mapping[tuple[str, str], int] = {}
        """`Flights.started` as it was over `SILENT_SECONDS` ago."""

    async def run(self) -> None:
        """Walks."""
        while not self._worker.closed:
            await asyncio.sleep(PATROL_SECONDS)
            try:
                await self.look()
            except CoditectError as error:
                log.info("A patrol could not look", extra={"shard": self._worker.shard, "reason": str(error)})

    async def look(self) -> None:
        """One round. Raises: BrokerUnavailable."""
        if not self._step():
            return
        now, now_ms = self._now(), self._clock.now_ms()
        self._mark(now)
        for node_key, fence in self._worker.in_flight.take_others().items():
            self._worker.put(Heard(node_key, fence))
        empty: dict[str, bool] = {}
        begun: list[tuple[NodeKey, Flight]] = []
        for node_key, flight in self._worker.in_flight:
            silent = now - flight.heard
            own_seconds = flight.heartbeat_ms / 1000 if flight.agent else 0.0
            if silent <= (own_seconds or SILENT_SECONDS):
                continue
            if flight.agent and not self._is_alone(flight, now_ms):
                begun.append((node_key, flight))
            elif flight.agent:
                self._lose(node_key, flight, "A begun task's agent is silent")
            elif self._is_overtaken(flight) or await self._is_empty(flight, empty):
                self._lose(node_key, flight, "A publication is missing; it is repeated")
        if begun:
            await self._look_for(begun[:MOST_ASKED], empty)

    def _lose(self, node_key: NodeKey, flight: Flight, told: str) -> None:
        log.warning(told, extra={"task_id": node_key.task_id, "agent_id": flight.agent})
        self._worker.put(Lost(node_key, flight.publication, flight.agent))

    def _is_alone(self, flight: Flight, now_ms: int) -> bool:
        """Whether nobody but the patrol brings it to another when its agent is gone, or the node wants it sooner."""
        acked = now_ms - flight.published_ms > EARLY_ACK_MS
        return acked or bool(flight.heartbeat_ms) or self._worker.in_flight.doubts(flight)

    async def _look_for(self, begun: Sequence[tuple[NodeKey, Flight]], empty: dict[str, bool]) -> None:
        """Has that published anew which the broker has for nobody, nor its agent, nor told of meanwhile.

        In this order: what an agent takes from its queue after it was seen there is with the agent when that is asked.
        """
        if not await self._has_heard_all():
            return
        sought = [(node_key, flight, flight.heard) for node_key, flight in begun if await self._is_empty(flight, empty)]
        asked = (self._pings.ask(AgentId(flight.agent), task_id=node_key.task_id) for node_key, flight, _ in sought)
        answers = await asyncio.gather(*asked)
        heard_all, now = await self._has_heard_all(), self._now()
        for (node_key, flight, heard), answer in zip(sought, answers, strict=True):
            if flight.heard != heard or self._worker.in_flight.get(node_key) is not flight:
                continue
            if answer is PingAnswer.PONG:
                flight.heard = now
            elif heard_all and answer in (PingAnswer.WITHOUT, PingAnswer.NO_MAIL):
                flight.heard = now
                self._lose(node_key, flight, "A begun task is with nobody; it is published anew")

    async def _has_heard_all(self) -> bool:
        """Whether no message to this shard waits to be heard."""
        stats = await self._broker.stats(routing.results_queue(self._worker.shard))
        return self._step() and stats is not None and stats.messages == 0

    def _step(self) -> bool:
        """Whether agents could be heard since the step before; if not, all of them have their full time again."""
        now, before, could_hear = self._now(), self._stepped, self._hears
        self._stepped, self._hears = now, self._broker.connected and not self._broker.blocked
        if could_hear and self._hears and now - before <= PAUSE_SECONDS:
            return True
        self._worker.in_flight.grant(now)
        return False

    def _mark(self, now: float) -> None:
        if now - self._marked > SILENT_SECONDS:
            self._marked, self._old_marks, self._marks = now, self._marks, dict(self._worker.in_flight.started)

    def _is_overtaken(self, flight: Flight) -> bool:
        return flight.publication < self._old_marks.get((flight.capability, flight.level), 0)

    async def _is_empty(self, flight: Flight, known: dict[str, bool]) -> bool:
        """Whether its queue has nothing to give, by one look for all that were published to it."""
        queue = routing.task_queue(flight.capability, Priority(flight.level))
        if queue not in known:
            stats = await self._broker.stats(queue)
            known[queue] = self._step() and (stats is None or stats.messages == 0)
        return known[queue]
