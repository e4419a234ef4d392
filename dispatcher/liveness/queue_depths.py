"""The depths of the fleet's queues, as metrics: tasks, dead letters, consumers and agents of each capability.

The dispatcher that leads the watch over agents asks the broker for them, and only while its metrics are read: each
reading of the metrics shows the last look, and asks for the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from coditect.aio.supervisor import Supervisor
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


@dataclass(slots=True)
class Depths:
    """The measurements of all known queues, by metric labels: waiting tasks, oldest age, consumers and dead letters."""

    waiting: dict[tuple[str, ...], float] = field(default_factory=dict)
    oldest: dict[tuple[str, ...], float] = field(default_factory=dict)
    consumers: dict[tuple[str, ...], float] = field(default_factory=dict)
    dead: dict[tuple[str, ...], float] = field(default_factory=dict)


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
        self._shown = Depths()
        self._asked = asyncio.Event()
        metrics.observe(REGISTRY_SIZE, lambda: self._size)
        for metric, name in (
            (QUEUE_DEPTH, "waiting"),
            (QUEUE_OLDEST, "oldest"),
            (QUEUE_CONSUMERS, "consumers"),
            (DEAD_LETTERS, "dead"),
        ):
            metrics.observe_all(metric, partial(self._read, name))
        metrics.observe_all(CAPABILITY_AGENTS, self._offered)

    def open(self, background: Supervisor) -> None:
        """Start the loop that looks at the queues when the metrics are read."""
        background.keep(self._run, name="queue depths", critical=False, idle=True)

    def note(self, records: Sequence[AgentRecord]) -> None:
        """Note how many agents live, and how many of them offer each capability."""
        self._size = len(records)
        self._agents = Counter(offer.name for record in records for offer in record.registration.capabilities)
        self._known |= dict.fromkeys(self._agents)

    def _offered(self) -> Mapping[tuple[str, ...], float]:
        return {(name,): self._agents[name] for name in self._watched()} if self._leads() else {}

    def _read(self, name: str) -> Mapping[tuple[str, ...], float]:
        self._asked.set()
        return getattr(self._shown, name) if self._leads() else {}

    def _watched(self) -> Iterable[str]:
        return list(self._known)[:MAX_WATCHED_CAPABILITIES]

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._leads():
                await self.look()
            await asyncio.sleep(DEPTH_CHECK_SECONDS)

    async def look(self) -> None:
        """Ask the broker for depths and consumers of the known queues; if it does not answer, keep the last figures."""
        seen, now = Depths(), asyncio.get_running_loop().time()
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
            seen.dead[(name,)] = dead.messages
        for level in Priority:
            stats, key = await self._broker.stats(routing.task_queue(name, level)), (name, level.value)
            if stats is None:
                continue
            if not stats.messages:
                self._filled[key] = now
            seen.waiting[key], seen.consumers[key] = stats.messages, stats.consumers
            seen.oldest[key] = now - self._filled.setdefault(key, now)
