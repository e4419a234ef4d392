"""The bridge that brings RQ's queued jobs and people's requests in RQ to the dispatcher's shard workers.

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
"""The pause between two looks at empty RQ queues, which `wake` ends when the dispatcher queued a job."""
AGAIN_SECONDS = 0.02
"""The pause before the next look for a capability of which RQ's queues had no job although capacity was free."""
LOOK_SECONDS = 1.0
"""The pause between two looks for people's requests in RQ and for a wiped Redis, and after a failure."""


class ShardCommands(Protocol):
    """The port that passes RQ's queued jobs, and what people cancel or requeue in RQ, to a dispatcher's shards."""

    def shards(self) -> Collection[int]:
        """Return the numbers of the shards that the dispatcher owns."""

    def room(self) -> Mapping[str, int]:
        """Return how many more nodes of each capability may be published now; without any, the bridge takes no jobs."""

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        """Claim the nodes whose jobs were taken from RQ's queues, or send RQ the states of nodes that cannot run."""

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        """Carry out people's cancels and requeues in RQ; the bridge passes each again until its job's state is set."""

    async def forgotten(self, shards: Collection[int]) -> None:
        """Have the live workflows of shards that RQ has lost written into RQ; then call `TaskGraph.remember`."""


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
        """The earliest time of the next look for each capability of which RQ's queues had no job."""
        self._known = set[int]()
        """The shards that RQ had at an earlier look. A shard that was just taken is not among them."""
        self.available = True
        """Whether Redis answered the bridge's last call."""

    def wake(self) -> None:
        """Make the bridge look for queued jobs in RQ at once, because a job was queued or capacity became free."""
        self._wake.set()

    def open(self, supervisor: Supervisor) -> None:
        """Start the loops for queued jobs and for requests; neither is critical, since nodes also run without RQ."""
        supervisor.keep(self._adopting, name="adopt from RQ", critical=False)
        supervisor.keep(self._looking, name="requests in RQ", critical=False)

    async def adopt(self) -> int:
        """Take jobs from RQ's queues once, propose their nodes to the shard workers, and return how many were proposed.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
        now = asyncio.get_running_loop().time()
        self._missed = {capability: again for capability, again in self._missed.items() if again > now}
        room = {capability: most for capability, most in self._workers.room().items() if capability not in self._missed}
        proposals = await self._graph.adopt(self._workers.shards(), room)
        self.available = True
        found = {proposal.capability for proposal in proposals}
        again = now + self._again_seconds
        self._missed |= {capability: again for capability in room if capability not in found}
        if proposals:
            await self._workers.proposed(proposals)
        return len(proposals)

    async def look(self) -> None:
        """Pass on people's requests in RQ once, and have the shards written to RQ again whose jobs Redis has lost.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
        shards = self._workers.shards()
        if not shards:
            return
        # before anything is written again: what people asked for while nobody looked would be overwritten
        if requests := await self._graph.requests(shards):
            await self._workers.requested(requests)
        known = await self._graph.known(shards)
        if lost := [shard for shard in shards if shard not in known]:
            level = logging.WARNING if self._known.intersection(lost) else logging.INFO
            log.log(level, "RQ does not have these shards; they are reconciled", extra={"shards": lost})
            await self._workers.forgotten(lost)
        self._known.update(known)

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
