"""How full the slots of the fleet are while more tasks are in flight than it has slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coditect.errors import RegistryUnavailable
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.port import Registry, Search

LOOK_SECONDS = 1.0
"""The pause between two looks: agents tell their load once a second."""
STALE_LOOKS = 1
"""The looks after the first one at queued work that do not count: the load told may be from before it."""


@dataclass(slots=True)
class Utilisation:
    """The sums of busy slots and of all slots, taken each second while a load test's tasks outnumber the slots.

    The first look of such a time does not count: the agents' figures may be older.
    """

    busy: int = 0
    slots: int = 0
    looks: int = 0
    _queued: int = 0

    @property
    def share(self) -> float | None:
        """The share of slots in use while tasks outnumbered slots, 0 to 1; None if no two checks in a row saw that."""
        return self.busy / self.slots if self.slots else None

    async def watch(self, registry: Registry, capability: str, in_flight: Callable[[], int]) -> None:
        """Once a second, until canceled, call `look` with the agents that offer a capability and the tasks in flight.

        A registry that does not answer costs its looks.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look(await registry.find(Search(capability)), in_flight())
            except RegistryUnavailable:
                self.look((), 0)

    def look(self, agents: Iterable[AgentRecord], in_flight: int) -> None:
        """Add the agents' busy and total slots to the sums, if tasks outnumber slots now and did at the last call."""
        living = [one for one in agents if one.load.status is not AgentStatus.DRAINING]
        slots = sum(one.registration.slots for one in living)
        self._queued = self._queued + 1 if in_flight > slots else 0
        if self._queued > STALE_LOOKS:
            self.busy += sum(one.load.running for one in living)
            self.slots += slots
            self.looks += 1
