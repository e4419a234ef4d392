"""From RQ to the dispatcher: what may run, what people asked for with stock tools, and that Redis was wiped.

Nothing is executed here and no job waits here: a job that RQ has queued is started and proposed in one step, and the
ledger disposes. What the bridge took and nobody claimed, because the process died between, is found by `difference`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from coditect.aio.supervisor import Supervisor
from dispatcher.taskgraph.errors import TaskGraphUnavailable
from dispatcher.taskgraph.port import Proposal, TaskGraph, ToolRequest

log = logging.getLogger(__name__)

ADOPT_SECONDS = 0.25
"""Between two looks at empty queues, unless `wake` is called: what we queue ourselves, we know of."""
AGAIN_SECONDS = 0.02
"""Before a capability that waits and was not found is looked for again: it may be told yet, or stand behind others."""
LOOK_SECONDS = 1.0
"""Between two looks for requests and for a wiped Redis, and after a failure."""


class ShardCommands(Protocol):
    """Whom the bridge serves: the shards of this dispatcher."""

    def shards(self) -> Collection[int]:
        """The shards that it owns and that RQ was reconciled with."""

    def room(self) -> Mapping[str, int]:
        """How many nodes it would publish now, by capability; empty when it adopts nothing."""

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        """These were queued in RQ and are started there: claim them, or tell RQ what they are."""

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        """People asked for this in RQ; it comes again until RQ is told the jobs' states."""

    async def forgotten(self, shards: Collection[int]) -> None:
        """RQ lost these shards, or never had them: reconcile them, then call `TaskGraph.remember`."""


class Bridge:
    """Two loops over the task graph; nothing is lost when they are cancelled or killed."""

    def __init__(
        self,
        graph: TaskGraph,
        workers: ShardCommands,
        *,
        adopt_seconds: float = ADOPT_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        self._graph = graph
        self._workers = workers
        self._adopt_seconds = adopt_seconds
        self._look_seconds = look_seconds
        self._again_seconds = again_seconds
        self._wake = asyncio.Event()
        self._missed: dict[str, float] = {}
        """Capabilities that were looked for and not found, and when to look again."""
        self.available = True
        """Whether Redis answered the last time."""

    def wake(self) -> None:
        """There is room, or a job was queued: looks at once."""
        self._wake.set()

    def open(self, supervisor: Supervisor) -> None:
        """Begin to adopt and to look. Neither loop is critical: nodes are dispatched without RQ, too."""
        supervisor.keep(self._adopting, name="adopt from RQ", critical=False)
        supervisor.keep(self._looking, name="requests in RQ", critical=False)

    async def adopt(self) -> int:
        """One look at the queues; how many were proposed. Raises: TaskGraphUnavailable."""
        now = asyncio.get_running_loop().time()
        self._missed = {capability: again for capability, again in self._missed.items() if again > now}
        room = {capability: most for capability, most in self._workers.room().items() if capability not in self._missed}
        proposals = await self._graph.adopt(self._workers.shards(), room)
        self.available = True
        found = {proposal.capability for proposal in proposals}
        self._missed |= dict.fromkeys(room.keys() - found, now + self._again_seconds)
        if proposals:
            await self._workers.proposed(proposals)
        return len(proposals)

    async def look(self) -> None:
        """One look for requests and for lost shards. Raises: TaskGraphUnavailable."""
        shards = self._workers.shards()
        if not shards:
            return
        # before anything is written anew: what people asked for while nobody looked would be overwritten
        if requests := await self._graph.requests(shards):
            await self._workers.requested(requests)
        known = await self._graph.known(shards)
        if lost := [shard for shard in shards if shard not in known]:
            log.warning("RQ does not have these shards; they are reconciled", extra={"shards": lost})
            await self._workers.forgotten(lost)

    async def _adopting(self) -> None:
        while True:
            self._wake.clear()
            pause = self._adopt_seconds
            try:
                if await self.adopt():
                    pause = 0.0
                elif self._missed:
                    pause = min(pause, self._again_seconds)
            except TaskGraphUnavailable as error:
                self._failed(error)
                pause = self._look_seconds
            except Exception:
                self.available = False  # nobody is to wait for what this loop would bring
                raise
            await self._pause(pause)

    async def _looking(self) -> None:
        while True:
            try:
                await self.look()
            except TaskGraphUnavailable as error:
                self._failed(error)
            await asyncio.sleep(self._look_seconds)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _failed(self, error: TaskGraphUnavailable) -> None:
        if self.available:
            log.warning("RQ does not answer; nodes are dispatched without it", extra=error.facts)
        self.available = False
