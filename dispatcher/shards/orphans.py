"""The orphan detector: it searches for published tasks of one shard that neither broker nor agent has.

`in_flight.py` says which flights are lost without a search. The search finds that a flight is lost when

* it is not begun, and its queue is missing or empty, or a task that was published to the queue later started over 60 s
  ago: the older messages of that queue are gone, whatever lies there now;
* it is begun, its queue is missing or empty, or a task that was published to the queue after the search began started
  over 60 s ago, and its agent denies the task or is gone: the grant went to an agent that had lost the delivery, and
  the agent that had it by then was refused. A finding is wrong when an end waits unread in the shard's own queue: that
  is looked at before and after.

An agent that reports an attempt which is not under way gets a cancel, if the node does not need it any more. Time in
which no report could arrive is no silence: while this process stood still, or the broker was away, and before this
dispatcher had the shard. The time is counted by a clock that is never set. An absence of the broker that is too short
to be seen costs a beat at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.commands import Heard, Lost
from dispatcher.ledger.nodes.attempts import DELIVERY_LOST, HEARTBEAT
from dispatcher.liveness.ping import PingAnswer, Pings
from dispatcher.shards.in_flight import SILENT_SECONDS, Fate, Flight
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

ORPHAN_CHECK_SECONDS = 5.0
STOOD_STILL_SECONDS = 15.0
"""The seconds between two looks beyond which this process counts as having stood still between them."""
MOST_ASKED = 200
"""The largest number of silent agents that one look asks for their tasks, all at the same time."""


class OrphanDetector:
    """The orphan detector of one shard worker, which looks for lost tasks until the worker is closed."""

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
        """The value of `InFlight.started` as it was more than `SILENT_SECONDS` ago."""

    async def run(self) -> None:
        """Search for lost tasks every 5 s until the shard's worker is closed; errors of the broker are only logged."""
        while not self._worker.closed:
            await asyncio.sleep(ORPHAN_CHECK_SECONDS)
            try:
                await self.look()
            except CoditectError as error:
                facts = {"shard": self._worker.shard, "reason": str(error)}
                log.info("The orphan detector could not look", extra=facts)

    async def look(self) -> None:
        """Examine the shard's published tasks once: publish lost ones again, and have agents' stale attempts canceled.

        It does nothing when agents' reports could not arrive since the last look.
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
        begun: list[tuple[Lost, Flight]] = []
        for node_key, flight in self._worker.in_flight:
            fate = self._worker.in_flight.fate(flight, now, now_ms)
            if fate is Fate.HELD:
                continue
            lost = Lost(node_key, flight.publication, flight.agent)
            if fate is Fate.LOST:
                self._lose(replace(lost, reason=HEARTBEAT), flight, "No agent has a silent task; it is published again")
            elif flight.agent:
                begun.append((lost, flight))
            elif self._is_overtaken(flight) or await self._is_empty(flight, empty):
                self._lose(lost, flight, "A publication is missing; it is repeated")
        if begun:
            await self._look_for(begun[:MOST_ASKED], empty)

    def _lose(self, lost: Lost, flight: Flight, message: str) -> None:
        log.warning(message, extra={"task_id": lost.node_key.task_id, "agent_id": lost.agent})
        flight.hear(self._now())  # the command may wait for longer than until the next look
        self._worker.put(lost)

    async def _look_for(self, begun: Sequence[tuple[Lost, Flight]], empty: dict[str, bool]) -> None:
        """Ask broker and agents whether they have the given begun tasks; publish again the tasks that neither has.

        The order matters: a task that an agent takes from its queue after the look at the queue is with the agent when
        the agent is asked.
        """
        if not await self._has_heard_all():
            return
        sought = [
            (lost, flight, flight.heard)
            for lost, flight in begun
            if self._is_passed(flight) or await self._is_empty(flight, empty)
        ]
        asked = (self._pings.ask(AgentId(lost.agent), task_id=lost.node_key.task_id) for lost, _, _ in sought)
        answers = await asyncio.gather(*asked)
        heard_all, now = await self._has_heard_all(), self._now()
        for (lost, flight, heard), answer in zip(sought, answers, strict=True):
            if flight.heard != heard or self._worker.in_flight.get(lost.node_key) is not flight:
                continue
            if answer is PingAnswer.PONG:
                flight.hear(now)
            elif heard_all and answer in (PingAnswer.WITHOUT, PingAnswer.NO_MAIL):
                reason = DELIVERY_LOST if answer is PingAnswer.WITHOUT else lost.reason
                self._lose(
                    replace(lost, reason=reason), flight, "No agent has a task that was begun; it is published again"
                )

    async def _has_heard_all(self) -> bool:
        """Tell whether all agents' reports are read: they could arrive, and the shard's results queue is empty."""
        stats = await self._broker.stats(routing.results_queue(self._worker.shard))
        return self._step() and stats is not None and stats.messages == 0

    def _step(self) -> bool:
        """Tell whether agents' reports could arrive since the last call; if not, count all tasks as reported now."""
        now, before, could_hear = self._now(), self._stepped, self._hears
        self._stepped, self._hears = now, self._broker.connected and not self._broker.blocked
        if could_hear and self._hears and now - before <= STOOD_STILL_SECONDS:
            return True
        self._worker.in_flight.grant(now)
        return False

    def _mark(self, now: float) -> None:
        if now - self._marked > SILENT_SECONDS:
            self._marked, self._old_marks, self._marks = now, self._marks, dict(self._worker.in_flight.started)

    def _is_overtaken(self, flight: Flight) -> bool:
        return flight.publication < self._old_marks.get((flight.capability, flight.level), 0)

    def _is_passed(self, flight: Flight) -> bool:
        """Tell whether all tasks that a begun task's queue held when its search began have surely left the queue.

        A queue of a busy fleet may never be empty. What an agent loses goes back to its queue, to either of its ends.
        """
        queue = flight.capability, flight.level
        flight.sought = flight.sought or self._worker.in_flight.published.get(queue, 0)
        return self._old_marks.get(queue, 0) > flight.sought

    async def _is_empty(self, flight: Flight, known: dict[str, bool]) -> bool:
        """Tell whether a published task's queue is missing or empty; `known` caches the answer for each queue."""
        queue = routing.task_queue(flight.capability, Priority(flight.level))
        if queue not in known:
            stats = await self._broker.stats(queue)
            known[queue] = self._step() and (stats is None or stats.messages == 0)
        return known[queue]
