"""The notification of workflow ends: one queue of events wakes all of a client's waits for workflows.

An event may be missed, so a wait also asks the control plane, but rarely. The client listens from the first wait until
there has been no wait for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType

from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError
from coditect.messaging.event_stream import EventStreams
from coditect.workflow.states import WorkflowState

log = logging.getLogger(__name__)

ENDINGS: Mapping[str, WorkflowState] = MappingProxyType(
    {f"workflow.{state.value}": state for state in WorkflowState if state.terminal}
)
"""The event types that report the end of a workflow, with the final state that each means."""
IDLE_SECONDS = 5.0
"""How long the client still listens to workflow events after its last wait."""


class Completions:
    """The listener to `workflow.*` events that wakes one client's waits for the ends of workflows."""

    def __init__(self, event_stream: EventStreams, background: Supervisor) -> None:
        self._event_stream = event_stream
        self._background = background
        self._waits: Counter[str] = Counter()
        """The number of waits for the end of each workflow, by workflow id."""
        self._expected: dict[str, asyncio.Future[None]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listens = False

    @property
    def heard(self) -> bool:
        """True when the client receives workflow events already, so that a wait may rely on an event."""
        return self._listens

    @contextmanager
    def waiting(self, workflow: str) -> Iterator[Callable[[], asyncio.Future[None]]]:
        """Yield a function that returns a future, which is done when an event reports the end of the given workflow.

        All waits for a workflow share the future; call the function again before each request for the state.
        """
        self._waits[workflow] += 1
        try:
            yield partial(self._expect, workflow)
        finally:
            self._waits[workflow] -= 1
            if not self._waits[workflow]:
                del self._waits[workflow]
                self._expected.pop(workflow, None)

    def _expect(self, workflow: str) -> asyncio.Future[None]:
        if self._listener is None or self._listener.done():
            self._listener = self._background.start(self._listen(), name="ends of workflows")
        turn = self._expected.get(workflow)
        if turn is None:
            turn = self._expected[workflow] = asyncio.get_running_loop().create_future()
        return turn

    async def _listen(self) -> None:
        try:
            async with self._event_stream.stream("workflow.*") as stream:
                self._listens = True
                while True:
                    idle = asyncio.ensure_future(asyncio.sleep(IDLE_SECONDS))
                    try:
                        event = await stream.next_before(idle)
                    finally:
                        idle.cancel()
                    if event is None and not self._expected:
                        return
                    if event is not None and event.type in ENDINGS:
                        turn = self._expected.pop(event.subject, None)
                        if turn is not None and not turn.done():
                            turn.set_result(None)
        except CoditectError as error:
            log.info("Ends are not heard; they are looked for", extra={"reason": str(error)})
        finally:
            self._listens = False
