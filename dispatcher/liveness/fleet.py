"""The dispatcher's copy of the registry: the living agents with their slots, read change by change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry, Search

LATE_MS = 2_000
"""The remaining lease in milliseconds below which an agent's record is read again."""
FEW = 32
"""The number of agents up to which each record is read by itself; with more, all are read at once."""
WHOLE_SECONDS = 30.0
"""The seconds after which the records of all agents are read again."""


class Fleet:
    """The living agents in the registry as of the last look, by id.

    `on_look` is called with the living agents after every look.
    """

    def __init__(
        self, registry: Registry, *, on_look: Callable[[Sequence[AgentRecord]], None] = lambda _: None
    ) -> None:
        self._registry = registry
        self._on_look = on_look
        self._records: dict[AgentId, AgentRecord] = {}
        self._whole_at: float | None = None

    async def look(self) -> tuple[AgentRecord, ...]:
        """Read which agents live from the registry, and return them by id.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        records = await self._read()
        self._on_look(records)
        return records

    async def get(self, agent: AgentId) -> AgentRecord | None:
        """Read one agent's record from the registry now; None when the agent is not alive.

        Raises:
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        return await self._registry.get(agent)

    async def _read(self) -> tuple[AgentRecord, ...]:
        leases = await self._registry.leases()
        wanted = [one for one, left_ms in leases.items() if one not in self._records or left_ms < LATE_MS]
        now = asyncio.get_running_loop().time()
        if self._whole_at is None or len(wanted) > FEW or now - self._whole_at > WHOLE_SECONDS:
            self._records = {record.agent_id: record for record in await self._registry.find(Search())}
            self._whole_at = now
            return tuple(self._records.values())
        for one in wanted:
            if (record := await self._registry.get(one)) is not None:
                self._records[one] = record
        self._records = {one: record for one, record in self._records.items() if one in leases}
        return tuple(replace(record, lease_ms=leases[one]) for one, record in sorted(self._records.items()))


def slots_of(records: Iterable[AgentRecord]) -> Counter[str]:
    """Return the slots that agents have for each capability; an agent's slots count for every capability it offers."""
    slots: Counter[str] = Counter()
    for record in records:
        for offer in record.registration.capabilities:
            slots[offer.name] += record.registration.slots
    return slots
