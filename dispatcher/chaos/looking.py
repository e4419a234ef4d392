"""Looks at the registry, about once a second, beside the really running agents, for the promise about the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from coditect.errors import RegistryUnavailable
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry, Search
from dispatcher.witness.history import Note, Type

LOOK_SECONDS = 1.0


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
