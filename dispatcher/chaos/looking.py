"""Looks at the registry, about once a second, beside those who really run: what the promise about it is judged by."""

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
    """The agents now, each by the name of its life. Who is stopped is in neither."""

    running: frozenset[str]
    """At work or on the way there."""
    at_work: frozenset[str]


async def keep_looking(
    registry: Registry, crew: Callable[[], RegistryLook], note: Note, *, name_of: Callable[[AgentRecord], str]
) -> None:
    """Notes one look after the other, until it is canceled. `name_of` names the life that a record is of."""
    while True:
        now = crew()
        note(Type.INVOKE, "look", "registry", running=sorted(now.running), at_work=sorted(now.at_work))
        try:
            records = await registry.find(Search())
        except RegistryUnavailable:
            note(Type.FAIL, "look", "registry")
        else:
            note(Type.OK, "look", "registry", listed=sorted(map(name_of, records)))
        await asyncio.sleep(LOOK_SECONDS)
