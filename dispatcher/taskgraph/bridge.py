"""The bridge from RQ to the dispatcher: jobs that may run, people's requests, and the loss of Redis's data.

No task is executed and no job waits here: a job that RQ has queued is started and proposed in one step, and the ledger
decides. A job that the bridge took and no dispatcher claimed, because the process died between, is found by
`difference`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from coditect.aio.supervisor import Supervisor
from dispatcher.taskgraph.port import Proposal, TaskGraph, TaskGraphUnavailable, ToolRequest

log = logging.getLogger(__name__)

ADOPT_SECONDS = 0.25
"""The seconds between two looks at empty RQ queues, unless `wake` is called."""
AGAIN_SECONDS = 0.02
"""The seconds before RQ is asked again for queued jobs of a capability of which it gave none."""
LOOK_SECONDS = 1.0
"""The seconds between two looks for people's requests and for a wiped Redis, and after a failure."""


class ShardCommands(Protocol):
    """The interface through which the bridge gives commands to the dispatcher's shards."""

    def shards(self) -> Collection[int]:
        """Return the shards that the dispatcher owns and that RQ was reconciled with."""

    def room(self) -> Mapping[str, int]:
        """Return how many nodes may be published now, by capability; empty when no job is to be taken."""

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        """Claim the nodes whose jobs RQ had queued, or tell RQ their states."""

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        """Carry out requests that people made with RQ's tools; a request comes again until RQ has the new state."""

    async def forgotten(self, shards: Collection[int]) -> None:
        """Show RQ all workflows of shards that RQ lost or never had, then call `TaskGraph.remember`."""


class Bridge:
    """The bridge from RQ to the shard workers: one loop adopts queued jobs, another looks for people's requests."""

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
        """The time of the next look for capabilities of which RQ had no queued job."""
        self.available = True
        """Whether Redis answered the bridge's last call."""

    def wake(self) -> None:
        """Look for queued jobs at once, because there is room, or a job was queued."""
        self._wake.set()

    def open(self, supervisor: Supervisor) -> None:
        """Start the two loops over RQ; nodes are dispatched without RQ, too, so neither is critical."""
        supervisor.keep(self._adopting, name="adopt from RQ", critical=False)
        supervisor.keep(self._looking, name="requests in RQ", critical=False)

    async def adopt(self) -> int:
        """Take jobs from RQ's queues once, propose them to the ledger, and return how many.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
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
        """Look once for people's requests in RQ, and for shards whose jobs RQ has lost.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
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
        end = asyncio.get_running_loop().call_later(seconds, self._wake.set)  # an idle dispatcher's cheapest wait
        try:
            await self._wake.wait()
        finally:
            end.cancel()

    def _failed(self, error: TaskGraphUnavailable) -> None:
        if self.available:
            log.warning("RQ does not answer; nodes are dispatched without it", extra=error.facts)
        self.available = False
