"""The client's selection of an agent for each task, from a cache of the registry's entries.

A call without a strategy costs a look into a dictionary: the client learns in the background whether a capability asks
for a strategy. A registry that does not answer leaves every choice to the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import RegistryUnavailable
from coditect.model.capability import ANYTHING, CapabilitySpec, Strategy, Wanted
from coditect.model.ids import AgentId
from coditect.model.prediction import TaskKind, task_kind
from coditect.model.registration import AgentRecord
from coditect.registry.port import BEAT_SECONDS, Lookups, Registry, Search
from coditect.registry.scoring import assign, choose, with_more
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.wire.tasks import input_features

log = logging.getLogger(__name__)

FRESH_ENTRY_SECONDS = BEAT_SECONDS
"""The age up to which a cached registry entry is fresh: an agent's heartbeat period."""
LEARN_SECONDS = 5.0
"""The seconds for which the client remembers that a capability declares no selection strategy."""
LEARN_PAUSE_SECONDS = 0.05
"""The pause between two background reads of the registry, which bounds their load."""
MAX_KNOWN_CAPABILITIES = 10_000
TASKS_PER_LOOKUP = 16
"""How many tasks of a batch go to the broker before the client looks up the capability's strategy again."""


@dataclass(slots=True)
class Known:
    """The cached registry entries of a capability's agents, updated with the tasks that the client assigned since."""

    records: dict[AgentId, AgentRecord] = field(default_factory=dict)
    read_at: float = 0.0
    """The time of the read from the registry, on the event loop's clock."""
    asked: Strategy | None = None
    """The selection strategy that the capability declares, or None."""
    features: tuple[str, ...] = ()
    """The features of inputs that the capability names for the strategy `predictive`."""

    def kind(self, capability: str, strategy: Strategy, body: bytes | None) -> TaskKind:
        """Return the kind of a task by the size of its input and, for `predictive`, by the input's features."""
        kind = task_kind(capability, None if body is None else len(body))
        if strategy is not Strategy.PREDICTIVE:
            return kind
        return replace(kind, features=input_features(self.features, body))

    @property
    def age(self) -> float:
        """The seconds since the registry entries were read."""
        return asyncio.get_running_loop().time() - self.read_at

    def give(self, agent_id: AgentId) -> Pick:
        """Count one more task as running at an agent in the cache; return the choice, whose `over` undoes that."""
        self.records[agent_id] = with_more(self.records[agent_id], 1)
        return Pick(agent_id, self)


@dataclass(frozen=True, slots=True)
class Pick:
    """The agent that a task should prefer; the cache counts the task as running until it ends."""

    agent_id: AgentId
    known: Known | None = None
    """The cached registry entries from which the agent was chosen; None when the caller named the agent."""

    def over(self, _: object) -> None:
        """Stop counting the task as running at the agent; the callback for the end of the task's reply future."""
        if self.known is not None:
            self.known.records[self.agent_id] = with_more(self.known.records[self.agent_id], -1)


class Selector:
    """The part of a client that selects the agent for each task, by strategy and by cached registry entries."""

    def __init__(
        self, registry: Registry | None, clock: Clock, background: Supervisor, metrics: Metrics | None = None
    ) -> None:
        self._registry = registry
        self._lookups = Lookups(metrics or MemoryMetrics())
        self._clock = clock
        self._background = background
        self._known: dict[str, Known] = {}
        self.plain: set[str] = set()
        """The capabilities that declare no strategy, as far as the client knows; most tasks need no selection."""
        self._turns: dict[str, int] = {}
        self._reads: dict[str, asyncio.Task[Known]] = {}
        self._learning: dict[str, None] = {}
        self._learner: asyncio.Task[None] | None = None

    async def pick(
        self,
        capability: str,
        strategy: Strategy | None,
        wanted: Wanted,
        *,
        body: bytes | None,
        pin: AgentId | None = None,
    ) -> Pick | None:
        """Select the agent for one task, by registry entries that are at most 5 s old; None lets the broker choose.

        With a strategy or criteria the entries are at most 1 s old, and read if need be. `body` is the task's
        input; None when it is in a blob. An agent given as `pin` is returned as it is.
        """
        if pin is not None:
            return Pick(pin)
        if strategy is None and wanted is ANYTHING and (capability in self.plain or self._registry is None):
            return None
        asked = _asked(strategy, wanted)
        found = await self._known_and_strategy(capability, asked)
        if found is None:
            return None
        known, strategy = found
        shared = asked is Strategy.ROUND_ROBIN and known.records
        turn = await self._turn(capability) if shared else self._next_turn(capability)
        kind, chance = known.kind(capability, strategy, body), self._clock.chance()
        record = choose(known.records.values(), strategy, kind, turn=turn, chance=chance, wanted=wanted)
        return None if record is None else known.give(record.agent_id)

    async def _known_and_strategy(self, capability: str, asked: Strategy | None) -> tuple[Known, Strategy] | None:
        """Return cached entries and a strategy: the one that a call asks for, with fresh entries, or the capability's.

        None lets the broker choose.
        """
        known = self._remembered(capability) if asked is None else await self._fresh(capability)
        strategy = asked or (None if known is None else known.asked)
        return None if known is None or strategy is None else (known, strategy)

    def batch(
        self, capability: str, strategy: Strategy | None, wanted: Wanted, *, pin: AgentId | None = None, many: int
    ) -> SelectionBatch:
        """Return a batch whose `next` gives the agent of one task; agents are selected for `many` tasks at once."""
        select = partial(self._assign, capability, _asked(strategy, wanted), wanted, many)
        return SelectionBatch(capability, select, None if pin is None else Pick(pin))

    async def _assign(
        self, capability: str, strategy: Strategy | None, wanted: Wanted, many: int, body: bytes | None
    ) -> Assigned | None:
        """Select agents for a batch's next tasks by at most one registry read; None lets the broker choose them all.

        The tasks are taken to be of the kind of the first one, which has the given body. By features of their inputs
        they differ, so then an agent is selected for that one alone.
        """
        found = await self._known_and_strategy(capability, strategy)
        if found is None:
            return None
        known, strategy = found
        kind = known.kind(capability, strategy, body)
        many = 1 if strategy is Strategy.PREDICTIVE and known.features else many
        turn = self._next_turn(capability, many)
        return known, assign(known.records.values(), many, strategy, kind, turn=turn, wanted=wanted)

    # -- what is known ----------------------------------------------------------------------------------

    def _remembered(self, capability: str) -> Known | None:
        """Return a capability's cached entries unless over 5 s old; a background task renews old or missing entries."""
        if self._registry is None:
            return None
        known = self._known.get(capability)
        age = known.age if known is not None else LEARN_SECONDS
        if age >= (LEARN_SECONDS if known is None or known.asked is None else FRESH_ENTRY_SECONDS):
            self._learn(capability)
        return known if age < LEARN_SECONDS else None

    def _learn(self, capability: str) -> None:
        if capability in self._learning:
            return
        self._learning[capability] = None
        if self._learner is None or self._learner.done():
            self._learner = self._background.start(self._learn_all(), name="learn strategies")

    async def _learn_all(self) -> None:
        """Read the registry entries of each capability with old or no cached entries, with a pause after each read."""
        while self._learning:
            capability = next(iter(self._learning))
            try:
                await self._read(capability)
                await asyncio.sleep(LEARN_PAUSE_SECONDS)
            finally:
                del self._learning[capability]

    async def _fresh(self, capability: str) -> Known:
        """Return a capability's registry entries, at most 1 s old; concurrent callers share one read."""
        known = self._known.get(capability)
        if known is not None and known.age < FRESH_ENTRY_SECONDS:
            return known
        reading = self._reads.get(capability)
        if reading is None:
            reading = self._background.start(self._read(capability), name="read the registry", awaited=True)
            self._reads[capability] = reading
            reading.add_done_callback(lambda _: self._reads.pop(capability, None))
        return await asyncio.shield(reading)

    async def _read(self, capability: str) -> Known:
        """Read a capability's entries from the registry into the cache; none when the registry does not answer."""
        known = Known()
        try:
            if self._registry is not None:
                records = await self._lookups.measured(self._registry.find(Search(capability=capability)))
                offer = newest_offer(records, capability)
                found = {record.agent_id: record for record in records}
                known = Known(found) if offer is None else Known(found, asked=offer.strategy, features=offer.features)
        except RegistryUnavailable as error:
            log.debug("No agent can be picked; the broker balances", extra={"reason": str(error)})
        loop = asyncio.get_running_loop()
        known.read_at = loop.time()
        if len(self._known) >= MAX_KNOWN_CAPABILITIES:
            self._known.clear()
        self._known[capability] = known
        if known.asked is None and capability not in self.plain:
            self.plain.add(capability)
            loop.call_later(LEARN_SECONDS, self.plain.discard, capability)
        return known

    async def _turn(self, capability: str) -> int:
        """Return the round-robin number that all clients share; the client's own when the registry does not answer."""
        try:
            if self._registry is not None:
                return await self._registry.next_turn(capability)
        except RegistryUnavailable as error:
            log.debug("The turn is this client's own", extra={"reason": str(error)})
        return self._next_turn(capability)

    def _next_turn(self, capability: str, many: int = 1) -> int:
        """Return the client's own round-robin number, which starts at random so that clients spread over agents."""
        turn = self._turns.get(capability)
        if turn is None:
            turn = int(self._clock.chance() * 1_000_000)
            if len(self._turns) >= MAX_KNOWN_CAPABILITIES:
                self._turns.clear()
        self._turns[capability] = turn + many
        return turn


Assigned: TypeAlias = tuple[Known, tuple[AgentId | None, ...]]
"""The cached registry entries, and the agents chosen from them; None for a task that any free agent may take."""


class SelectionBatch:
    """The agents for a sequence of tasks, selected for several tasks at once, and given one by one by `next`."""

    def __init__(
        self, capability: str, select: Callable[[bytes | None], Awaitable[Assigned | None]], pinned: Pick | None
    ) -> None:
        self._capability = capability
        self._select = select
        self._pinned = pinned
        self._known: Known | None = None
        self._kind: TaskKind | None = None
        """The kind of task that the picked agents are for; a task of another kind needs new picks."""
        self._picks: deque[AgentId | None] = deque()

    async def next(self, body: bytes | None) -> Pick | None:
        """Return the agent for the next task, whose input is `body` or in a blob; None leaves it to the broker."""
        if self._pinned is not None:
            return self._pinned
        if not self._picks or (self._known is not None and self._is_stale(self._known, body)):
            self._kind = self._kind_of(body)
            assigned = await self._select(body)
            self._known, picks = assigned or (None, (None,) * TASKS_PER_LOOKUP)
            self._picks = deque(picks)
        agent_id = self._picks.popleft()
        return None if agent_id is None or self._known is None else self._known.give(agent_id)

    def _is_stale(self, known: Known, body: bytes | None) -> bool:
        return known.age >= FRESH_ENTRY_SECONDS or self._kind_of(body) != self._kind

    def _kind_of(self, body: bytes | None) -> TaskKind:
        return task_kind(self._capability, None if body is None else len(body))


def _asked(strategy: Strategy | None, wanted: Wanted) -> Strategy | None:
    """Return the selection strategy of a call: the given one, or the best match when only criteria are given."""
    return Strategy.BEST_MATCH if strategy is None and len(wanted) else strategy


def newest_offer(records: Iterable[AgentRecord], capability: str) -> CapabilitySpec | None:
    """Return the description of a capability; where agents differ, that of the last started agent."""
    newest = max(records, key=lambda record: (record.registration.started_at_ms, record.agent_id), default=None)
    if newest is None:
        return None
    return next((offer for offer in newest.registration.capabilities if offer.name == capability), None)
