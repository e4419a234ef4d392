"""What the dispatcher knows of the fleet: who lives, by what changed since the last look, and how many slots it has."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace

from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry, Search
from dispatcher.capacity import Capacity

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
LATE_MS = 2_000
"""An agent that has less left of its lease than a beat leaves is read anew: it may be draining."""
FEW = 32
"""So many agents are read one by one; of more, all."""
WHOLE_SECONDS = 30.0
"""After so long all are read anew: one may have registered again with the same name."""


class Fleet:
    """The registry as of the last look, for one reader. A look reads the leases, and what is new or late."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._records: dict[AgentId, AgentRecord] = {}
        self._whole_at: float | None = None

    async def look(self) -> tuple[AgentRecord, ...]:
        """Who lives now, by agent id. The load of one that beats in time may be of an earlier look.

        Raises: RegistryUnavailable.
        """
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


async def keep_slots(registry: Registry, window: Capacity) -> None:
    """Tells the window the fleet's slots, every two seconds; while the registry is silent it keeps what it knew."""
    fleet = Fleet(registry)
    while True:
        try:
            records = await fleet.look()
        except RegistryUnavailable as error:
            log.debug("The fleet's slots are unknown", extra={"reason": str(error)})
        else:
            slots: Counter[str] = Counter()
            for record in records:
                for offer in record.registration.capabilities:
                    slots[offer.name] += record.registration.slots
            window.set_slots(slots)
        await asyncio.sleep(LOOK_SECONDS)
