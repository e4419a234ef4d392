"""The lessons that the control plane keeps in shared state, as agents, clients and prompts use them."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

from coditect.collaboration.state import SharedState, StatePort, reserved
from coditect.errors import CoditectError, NotFound
from coditect.model.capability import check_capability_name
from coditect.model.lesson import Lesson, prompt_of, read_rows, rows_of
from coditect.wire.control import COORDINATION, LESSONS_SPACE

log = logging.getLogger(__name__)

MOST_TAUGHT = 30
"""The most capabilities whose lessons a planner gets, those with the latest lessons; as many are read at once."""
PROMPT_SECONDS = 60.0
READ_SECONDS = 2.0
"""How long a prompt waits for its lessons."""


class Lessons:
    """The lessons that the control plane keeps, as agents and clients read and forget them."""

    def __init__(self, port: StatePort) -> None:
        self._space = SharedState(port, LESSONS_SPACE)

    async def list(self, capability: str | None = None, *, limit: int | None = None) -> list[Lesson]:
        """Return the lessons of a capability, or of all by name, the weightiest of each first; at most so many.

        Raises:
            ControlPlaneRequired: when no dispatcher answers.
        """
        if capability is not None:
            return read_rows(await self._space.get(check_capability_name(capability)))[:limit]
        keys, listed = [entry.key async for entry in self._space.entries(limit=limit)], list[Lesson]()
        for first in range(0, len(keys), MOST_TAUGHT):
            if limit is None or len(listed) < limit:
                listed += [lesson for found in await self._read(keys[first : first + MOST_TAUGHT]) for lesson in found]
        return listed[:limit]

    async def about(self, capabilities: Iterable[str]) -> dict[str, Sequence[Lesson]] | None:
        """Return the lessons of those capabilities that have any; of the 30 with the latest lessons, if more have.

        Lessons are hints, so None is returned when no dispatcher answers within two seconds.
        """
        wanted = frozenset(capabilities)
        try:
            async with asyncio.timeout(READ_SECONDS):
                rows = [entry async for entry in self._space.entries() if entry.key in wanted]
                latest = [row.key for row in sorted(rows, key=lambda row: -row.at_ms)[:MOST_TAUGHT]]
                return {key: found for key, found in zip(latest, await self._read(latest), strict=True) if found}
        except (CoditectError, TimeoutError) as error:
            log.info("The lessons cannot be read; a prompt goes without new ones", extra={"reason": str(error)})
            return None

    async def _read(self, keys: Sequence[str]) -> Sequence[Sequence[Lesson]]:
        return [read_rows(rows) for rows in await asyncio.gather(*map(self._space.get, keys))]

    async def forget(self, capability: str, lesson: str | None = None) -> int:
        """Forget one lesson of a capability, or all, and return how many; a failure that comes again is learned again.

        Raises:
            NotFound: when the capability has no such lesson.
            ControlPlaneRequired: when no dispatcher answers.
        """
        space = reserved(self._space, COORDINATION)
        before: list[Lesson] = []

        def without(rows: Any) -> Any:
            before[:] = read_rows(rows)
            left = [known for known in before if lesson not in (None, known.id)]
            if len(left) == len(before):
                fix = "coditect capability list --lessons"
                raise NotFound("There is no such lesson", capability=capability, lesson=lesson, fix=fix)
            return rows_of(left)

        left = await space.update(check_capability_name(capability), without)
        if not left:
            await space.delete(capability)
        return len(before) - len(left)


class Prompting:
    """The lessons for the prompts of one process: read at most once a minute, and left out if nobody answers."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], tuple[float, str]] = {}

    async def text(self, port: StatePort, *capabilities: str) -> str:
        """Return the weightiest lessons of the capabilities as a part of a prompt; empty when there are none."""
        now = asyncio.get_running_loop().time()
        read_at, known = self._known.get(capabilities, (-math.inf, ""))
        if now - read_at >= PROMPT_SECONDS:
            self._known[capabilities] = now, known  # meanwhile others do not read, too
            if (found := await Lessons(port).about(capabilities)) is not None:
                known = prompt_of(found)
                self._known[capabilities] = now, known
        return known
