"""The watchers that record which agents run and which the registry lists, and in simulations when a slot is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from chaos.history import Note, Type
from coditect.errors import RegistryUnavailable
from coditect.model.registration import AgentRecord, Load
from coditect.registry.port import Registry, Search

LOOK_SECONDS = 1.0
SLOTS_SECONDS = 0.05
"""The pause between two checks of free slots and queues."""


@dataclass(frozen=True, slots=True)
class RegistryLook:
    """The agents to compare the registry's list with: the names of those that run, and of those that take work."""

    running: frozenset[str]
    """The agents that run, ready for work or still starting."""
    at_work: frozenset[str]


async def keep_looking(
    registry: Registry, agents_now: Callable[[], RegistryLook], note: Note, *, name_of: Callable[[AgentRecord], str]
) -> None:
    """Record once a second which agents run and which the registry lists, until canceled."""
    clock = asyncio.get_running_loop().time
    while True:
        begun, now = clock(), agents_now()
        note(Type.INVOKE, "look", "registry", running=sorted(now.running), at_work=sorted(now.at_work))
        try:
            records = await registry.find(Search())
        except RegistryUnavailable:
            note(Type.FAIL, "look", "registry")
        else:
            note(Type.OK, "look", "registry", listed=sorted(map(name_of, records)))
        await asyncio.sleep(LOOK_SECONDS - (clock() - begun))


def taken(load: Load) -> int:
    """Return how many attempts an agent has taken: under way, ended, or failed and tried again."""
    return load.completed + load.failed_attempts + load.running + load.suspended


async def keep_looking_at_slots(idle_now: Callable[[], str], note: Note) -> None:
    """Record each time span in which an agent has a free slot for a waiting task, until canceled.

    `idle_now` returns the agent and the task, or an empty text. A span differs from its record by less than a pause.
    """
    idle = ""
    while True:
        if (found := idle_now()) != idle:
            if idle:
                note(Type.OK, "idle", idle)
            if found:
                note(Type.INVOKE, "idle", found)
            idle = found
        await asyncio.sleep(SLOTS_SECONDS)
