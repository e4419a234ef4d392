"""The dispatcher's copy of the registry's living agents, and the count of the agents' slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.port import Lookups, Registry, Search
from coditect.telemetry.metrics import MemoryMetrics, Metrics

LATE_MS = 2_000
"""The remaining lease below which an agent's record is read again: it missed a heartbeat, and may be draining."""
MAX_SINGLE_READS = 32
"""The most agents whose records are read one by one; for more, the records of all agents are read."""
WHOLE_SECONDS = 30.0
"""The time after which all agents' records are read again: an agent may have registered again with its id."""


class Fleet:
    """A copy of the registry's agents; an update reads all leases, but as a rule only few agents' records.

    Those are new, late or cut-off agents; every 30 s, or when there are many, all records are read. `on_look` is called
    with the living agents after every look.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        on_look: Callable[[Sequence[AgentRecord]], None] = lambda _: None,
        metrics: Metrics | None = None,
    ) -> None:
        self.registry = registry
        self._lookups = Lookups(metrics or MemoryMetrics())
        self._on_look = on_look
        self._records: dict[AgentId, AgentRecord] = {}
        self._whole_at: float | None = None

    async def look(self) -> tuple[AgentRecord, ...]:
        """Bring the copy up to date from the registry, and return the records of all living agents.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        records = await self._lookups.measured(self._read())
        self._on_look(records)
        return records

    async def has(self, agent: AgentId) -> bool:
        """Tell whether an agent is alive by the registry; False while the registry does not answer."""
        try:
            record = await self.registry.get(agent)
        except RegistryUnavailable:
            return False
        return record is not None and record.lease_ms > 0

    def _is_well(self, agent: AgentId) -> bool:
        """Tell whether the copy has an agent, and the agent did not report there that it is cut off from the broker."""
        record = self._records.get(agent)
        return record is not None and record.load.status is not AgentStatus.OFFLINE

    async def _read(self) -> tuple[AgentRecord, ...]:
        leases = await self.registry.leases()
        wanted = [agent_id for agent_id, left_ms in leases.items() if left_ms < LATE_MS or not self._is_well(agent_id)]
        now = asyncio.get_running_loop().time()
        if self._whole_at is None or len(wanted) > MAX_SINGLE_READS or now - self._whole_at > WHOLE_SECONDS:
            self._records = {record.agent_id: record for record in await self.registry.find(Search())}
            self._whole_at = now
            return tuple(self._records.values())
        for agent_id in wanted:
            if (record := await self.registry.get(agent_id)) is not None:
                self._records[agent_id] = record
        self._records = {agent_id: record for agent_id, record in self._records.items() if agent_id in leases}
        return tuple(replace(record, lease_ms=leases[agent_id]) for agent_id, record in sorted(self._records.items()))


def slots_of(records: Iterable[AgentRecord]) -> Counter[str]:
    """Return the sum of agents' slots for each capability; an agent's slots count for each of its capabilities."""
    slots: Counter[str] = Counter()
    for record in records:
        for offer in record.registration.capabilities:
            slots[offer.name] += record.registration.slots
    return slots
