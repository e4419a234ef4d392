"""Looks, beside the really running agents: at the registry about once a second, and at slots and queues more often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from coditect.errors import RegistryUnavailable
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry, Search
from dispatcher.witness.history import Note, Type

LOOK_SECONDS = 1.0
SLOTS_SECONDS = 0.05
"""The pause between two looks at slots and queues."""


@dataclass(frozen=True, slots=True)
class RegistryLook:
    """The running agents and those at work, at one instant, by the names of their processes."""

    running: frozenset[str]
    """The agents at work or on the way there."""
    at_work: frozenset[str]


async def keep_looking(
    registry: Registry, agents_now: Callable[[], RegistryLook], note: Note, *, name_of: Callable[[AgentRecord], str]
) -> None:
    """Record looks at registry and agents until canceled; `name_of` names the process of a registry's record."""
    while True:
        now = agents_now()
        note(Type.INVOKE, "look", "registry", running=sorted(now.running), at_work=sorted(now.at_work))
        try:
            records = await registry.find(Search())
        except RegistryUnavailable:
            note(Type.FAIL, "look", "registry")
        else:
            note(Type.OK, "look", "registry", listed=sorted(map(name_of, records)))
        await asyncio.sleep(LOOK_SECONDS)


async def keep_looking_at_slots(idle_now: Callable[[], str], note: Note) -> None:
    """Record until canceled each time in which a slot is free for a task that waits; `idle_now` names it, or is empty.

    It begins and ends by a look, so it lasted longer than what is recorded by less than two pauses.
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
