"""The depths of the fleet's queues, as metrics: tasks, dead letters, consumers and agents of each capability.

The dispatcher that leads the watch over agents asks the broker for them, and only while its metrics are read: each
reading of the metrics shows the last look, and asks for the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from coditect.broker.port import Broker
from coditect.errors import BrokerUnavailable
from coditect.model.capability import Priority
from coditect.model.registration import AgentRecord
from coditect.telemetry.metrics import (
    CAPABILITY_AGENTS,
    DEAD_LETTERS,
    QUEUE_CONSUMERS,
    QUEUE_DEPTH,
    QUEUE_OLDEST,
    REGISTRY_SIZE,
    Metrics,
)
from coditect.wire import routing

DEPTH_CHECK_SECONDS = 1.0
"""The least time between two looks."""
UNSEEN_SECONDS = 60.0
"""The time without a look after which a queue may have been empty meanwhile: its age begins again."""
MAX_WATCHED_CAPABILITIES = 500
"""The number of capabilities whose queues are looked at; there are four queues for each."""


Depths = dict[str, dict[tuple[str, ...], float]]
"""The measurements of all known queues, by the metric's name and the values of its labels."""
SHOWN = (QUEUE_DEPTH, QUEUE_OLDEST, QUEUE_CONSUMERS, DEAD_LETTERS)


class QueueDepths:
    """The metrics of the fleet's queue depths, reported only by the dispatcher that leads the monitoring of agents."""

    def __init__(self, broker: Broker, metrics: Metrics, *, leads: Callable[[], bool]) -> None:
        self._broker = broker
        self._leads = leads
        self._agents: Counter[str] = Counter()
        self._size = 0
        self._known: dict[str, None] = {}
        """The capabilities that agents offered while this dispatcher ran, and whose queues may hold tasks still."""
        self._filled: dict[tuple[str, ...], float] = {}
        self._looked_at = 0.0
        """The time of the last look at which a queue was empty, by capability and priority."""
        self._shown: Depths = {metric.name: {} for metric in SHOWN}
        self._asked = asyncio.Event()
        metrics.observe(REGISTRY_SIZE, lambda: self._size)
        for metric in SHOWN:
            metrics.observe_all(metric, partial(self._read, metric.name))
        metrics.observe_all(CAPABILITY_AGENTS, self._offered)

    def note(self, records: Sequence[AgentRecord]) -> None:
        """Note how many agents live, and how many of them offer each capability."""
        self._size = len(records)
        self._agents = Counter(offer.name for record in records for offer in record.registration.capabilities)
        self._known |= dict.fromkeys(self._agents)

    def _offered(self) -> Mapping[tuple[str, ...], float]:
        return {(name,): self._agents[name] for name in self._watched()} if self._leads() else {}

    def _read(self, metric: str) -> Mapping[tuple[str, ...], float]:
        self._asked.set()
        return self._shown[metric] if self._leads() else {}

    def _watched(self) -> Iterable[str]:
        return list(self._known)[:MAX_WATCHED_CAPABILITIES]

    async def run(self) -> None:
        """Look at the queues when the metrics are read, until canceled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._leads():
                await self.look()
            await asyncio.sleep(DEPTH_CHECK_SECONDS)

    async def look(self) -> None:
        """Ask the broker for depths and consumers of the known queues; if it does not answer, keep the last figures."""
        seen: Depths = {metric.name: {} for metric in SHOWN}
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > UNSEEN_SECONDS:
            self._filled.clear()
        self._looked_at = now
        try:
            for name in self._watched():
                await self._look_at(name, seen, now)
        except BrokerUnavailable:
            return
        self._shown = seen

    async def _look_at(self, name: str, seen: Depths, now: float) -> None:
        dead = await self._broker.stats(routing.dead_queue(name))
        if dead is not None:
            seen[DEAD_LETTERS.name][(name,)] = dead.messages
        for level in Priority:
            stats, key = await self._broker.stats(routing.task_queue(name, level)), (name, level.value)
            if stats is None:
                continue
            if not stats.messages:
                self._filled[key] = now
            seen[QUEUE_DEPTH.name][key], seen[QUEUE_CONSUMERS.name][key] = stats.messages, stats.consumers
            seen[QUEUE_OLDEST.name][key] = now - self._filled.setdefault(key, now)
