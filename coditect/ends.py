"""Wakes whoever waits for the end of a workflow when an event tells of it: one queue for all waits of a client.

An event may be missed, so whoever waits also looks; with this, rarely. Nobody listens before a wait has lasted for a
tenth of a second, and no longer than anybody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType

from coditect.background import Background
from coditect.errors import CoditectError
from coditect.listening import Listening
from coditect.model.workflow.states import WorkflowState

log = logging.getLogger(__name__)

ENDINGS: Mapping[str, WorkflowState] = MappingProxyType(
    {f"workflow.{state.value}": state for state in WorkflowState if state.terminal}
)
"""The events that end a workflow's story."""
IDLE_SECONDS = 5.0
"""How long it is still listened when nobody waits any more."""


class Ends:
    """The ends that one client hears of."""

    def __init__(self, listening: Listening, background: Background) -> None:
        self._listening = listening
        self._background = background
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._listener: asyncio.Task[None] | None = None

    def expect(self, workflow: str) -> asyncio.Future[None]:
        """Done when an event tells that it ended; shared by all who wait for it. `forget` it afterwards."""
        if self._listener is None or self._listener.done():
            self._listener = self._background.start(self._listen(), name="ends of workflows")
        turn = self._waiting.get(workflow)
        if turn is None:
            turn = self._waiting[workflow] = asyncio.get_running_loop().create_future()
        return turn

    def forget(self, workflow: str) -> None:
        """Somebody does not wait any more; who still does expects it again."""
        self._waiting.pop(workflow, None)

    async def _listen(self) -> None:
        try:
            async with self._listening.stream("workflow.*") as stream:
                while True:
                    idle = asyncio.ensure_future(asyncio.sleep(IDLE_SECONDS))
                    try:
                        event = await stream.next_before(idle)
                    finally:
                        idle.cancel()
                    if event is None and not self._waiting:
                        return
                    if event is not None and event.type in ENDINGS:
                        turn = self._waiting.pop(event.subject, None)
                        if turn is not None and not turn.done():
                            turn.set_result(None)
        except CoditectError as error:
            log.info("Ends are not heard; they are looked for", extra={"reason": str(error)})
