"""The orphan detector: it looks for publications of one shard without reports, and for reports without a publication.

=============================================  ==================================================
finding                                        action
=============================================  ==================================================
no start reported for 60 s, and the queue is   publish again: the queue was deleted, or the
missing or empty                               message was lost with it
no start reported for 60 s, and another task   the same: the older messages of that queue are
that was published to the queue later started  gone, whatever lies there now
over 60 s ago
working for longer than its early ack, or      publish again: the agent is gone, and nothing
since before a rebuild, and its agent silent   redelivers a task that was acked, or that is not
for 60 s                                       with the broker
working, and its agent silent for longer than  the same, as the node demands
the node's own `heartbeat`
working, its agent silent for 60 s, and denies the same: the grant went to an agent that had lost
the task when asked, or is gone, and the queue the delivery, and the agent that had it by then
is missing or empty                            was refused
an agent runs an attempt that is not under way cancel it, if the node does not need it any more
=============================================  ==================================================

All actions are safe after a wrong finding: the older publication is stale, and its results are refused. A finding is
wrong when an end waits unread in the shard's own queue: the last-but-one look checks that, too. Time in which no report
could arrive is no silence: while this process stood still, or the broker was away, and before this dispatcher had the
shard. The time is counted by a clock that is never set. An absence of the broker that is too short to be seen costs a
beat at most.
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

LOOK_SECONDS = 5.0
PAUSE_SECONDS = 15.0
"""The distance of two looks beyond which this process counts as having stood still between them."""
SILENT_SECONDS = 60.0
"""The silence after which the detector looks for a publication."""
MOST_ASKED = 200
"""The number of silent agents that a look asks, at the same time."""
EARLY_ACK_MS = 600_000
"""The time from which an agent has acked its delivery and reports every 20 s."""


class OrphanDetector:
    """The orphan detector of one shard worker; `run` looks until it is canceled."""

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
        """The state of `InFlight.started` over `SILENT_SECONDS` ago."""

    async def run(self) -> None:
        """Look every `LOOK_SECONDS` until the worker is closed; errors of the broker are logged."""
        while not self._worker.closed:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except CoditectError as error:
                facts = {"shard": self._worker.shard, "reason": str(error)}
                log.info("The orphan detector could not look", extra=facts)

    async def look(self) -> None:
        """Examine all flights once, and publish again what neither the broker nor an agent has.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
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
        """Return whether the broker may not deliver the task again if its agent dies, or the node has a heartbeat."""
        acked = now_ms - flight.published_ms > EARLY_ACK_MS
        return acked or bool(flight.heartbeat_ms) or self._worker.in_flight.doubts(flight)

    async def _look_for(self, begun: Sequence[tuple[NodeKey, Flight]], empty: dict[str, bool]) -> None:
        """Publish tasks again that neither the broker nor their agents have, and that were not reported meanwhile.

        The order matters: a task that an agent takes from its queue after the look at the queue is with the agent when
        the agent is asked.
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
        """Return whether no message waits unread in the shard's results queue."""
        stats = await self._broker.stats(routing.results_queue(self._worker.shard))
        return self._step() and stats is not None and stats.messages == 0

    def _step(self) -> bool:
        """Return whether reports could arrive since the last step; if not, give all agents their full time again."""
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
        """Return whether the flight's queue is missing or empty; one look serves all flights of the queue."""
        queue = routing.task_queue(flight.capability, Priority(flight.level))
        if queue not in known:
            stats = await self._broker.stats(queue)
            known[queue] = self._step() and (stats is None or stats.messages == 0)
        return known[queue]
