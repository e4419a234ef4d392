"""The scheduler, which claims ready nodes while capacity permits: from RQ's queues, or without RQ from the ledger.

RQ holds the backlog, and the bridge takes jobs from it by priority, up to the capacity of each capability. The shards'
backlogs (`shards/backlog.py`) are claimed from instead when Redis does not answer, or when RQ brings no job of a
capability for `RQ_PATIENCE_SECONDS` although capacity is free and the ledger knows of ready nodes.

The capacity for nodes on their way to the claim is reserved until the claim is committed, so that no more are taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from coditect.aio.supervisor import Supervisor
from coditect.errors import Retryable
from coditect.wire.control import Verb
from dispatcher.ledger.commands import Asked, Command, Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.workflows.status import live
from dispatcher.ports import Ports
from dispatcher.shards.completions import Settle, Undone, ignore
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.taskgraph.port import Proposal, RequestKind, TaskGraph, TaskGraphUnavailable, ToolRequest

log = logging.getLogger(__name__)

RQ_PATIENCE_SECONDS = 1.0
BACKLOG_CHECK_SECONDS = 0.25
MOST_OF_A_COMMAND = 64
"""The most nodes that one command to a shard worker claims."""
CLAIM_BYTES = 4_000
"""The estimated bytes that the claim of one node adds to a batch, against the batch's limit."""


TOOL_VERBS = {RequestKind.CANCEL: Verb.CANCEL, RequestKind.REQUEUE: Verb.REDRIVE}
"""The requests that people make by what they do to a job with RQ's tools."""


class Scheduler:
    """The scheduler of one dispatcher, which has shard workers claim ready nodes while publishing capacity is free."""

    def __init__(self, ports: Ports, ownership: ShardOwnership, graph: TaskGraph | None) -> None:
        self._ports = ports
        self._ownership = ownership
        self._graph = graph
        self._brought: dict[str, float] = {}
        """The time of the last claim of a node that came from RQ's queues, by capability."""
        self._waiting: dict[str, float] = {}
        """The time since when a capability has had both ready nodes and free capacity, by capability."""
        self._rounds = 0
        self.bridge = None if graph is None else Bridge(graph, self)

    def open(self) -> None:
        """Start the loops that claim ready nodes: from RQ's queues, and from the shards' backlogs."""
        self._ports.background.keep(self._without_rq, name="backlogs", critical=True, idle=True)
        if self.bridge is not None:
            self.bridge.open(self._ports.background)

    def nudge(self) -> None:
        """Look for ready nodes to claim now: wake the bridge to RQ, or claim from the ledger if RQ is unavailable."""
        if not any(worker.backlog for worker in self._ownership.workers.values()):
            return
        if self.bridge is not None:
            self.bridge.wake()
            if self.bridge.available:
                return
        for capability in self.room():
            self._fill(capability)

    # -- for the bridge ---------------------------------------------------------------------------------

    def shards(self) -> Collection[int]:
        """Return the numbers of the shards that the dispatcher owns."""
        return tuple(self._ownership.workers)

    def room(self) -> Mapping[str, int]:
        """Return how many more nodes may be published now, for each capability with ready nodes and free capacity."""
        backlogs = (worker.backlog for worker in self._ownership.workers.values())
        waiting = dict.fromkeys(capability for backlog in backlogs for capability in backlog)
        found = {capability: self._ports.capacity.room_for(capability) for capability in waiting}
        return {capability: room for capability, room in found.items() if room > 0}

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        """Have the shard workers claim nodes that RQ proposes, as capacity permits; RQ gets the others' states."""
        workflows = dict.fromkeys(proposal.workflow for proposal in proposals)
        shards = {workflow: self._shard_of(workflow) for workflow in workflows}
        named = dict.fromkeys(proposal.capability for proposal in proposals if proposal.capability)
        room = {capability: self._ports.capacity.room_for(capability) for capability in named}
        groups: dict[tuple[int, str], list[NodeKey]] = {}
        for workflow, node, capability in proposals:
            left = room.get(capability, 0)
            if left > 0:
                room[capability] = left - 1
            groups.setdefault((shards[workflow], capability if left > 0 else ""), []).append(NodeKey(workflow, node))
        for (shard, kept), node_keys in groups.items():
            for first in range(0, len(node_keys), MOST_OF_A_COMMAND):
                self._propose(shard, kept, tuple(node_keys[first : first + MOST_OF_A_COMMAND]))

    def _propose(self, shard: int, capability: str, node_keys: tuple[NodeKey, ...]) -> None:
        """Have a shard's worker claim those given nodes that are ready; with a capability, reserve room for them."""
        settle: Settle = ignore
        if capability:
            self._ports.capacity.keep(capability, len(node_keys))
            settle = partial(self._settled, capability, len(node_keys))
        self._put(shard, Proposed(node_keys, capability), settle, size_bytes=CLAIM_BYTES * len(node_keys))

    def _settled(self, capability: str, number: int, answer: Any) -> None:
        """Free the publishing capacity reserved for nodes that RQ proposed; if any was claimed, record the time."""
        self._ports.capacity.free(capability, number)
        if isinstance(answer, int) and answer > 0:
            self._brought[capability] = asyncio.get_running_loop().time()

    def _shard_of(self, workflow: str) -> int:
        return shard_of(workflow, self._ownership.count)

    def _put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int = 0) -> None:
        if not self._ownership.put(shard, command, settle, size_bytes=size_bytes):
            settle(Undone())

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        """Carry out what people or stock workers did to RQ's jobs: cancel a workflow, redrive a node, or correct a job.

        A person's cancel of a job cancels its workflow, and a requeue redrives its node. A job that a stock RQ worker
        took by mistake is claimed or gets the ledger's state.
        """
        for request in requests:
            shard = self._shard_of(request.workflow)
            claim = partial(self._propose, shard, "", (NodeKey(request.workflow, request.node),))
            verb = TOOL_VERBS.get(request.kind)
            if verb is None:
                claim()
            else:
                body = {"workflow": request.workflow, "node": request.node, "reason": "canceled in RQ"}
                self._put(shard, Asked(verb, body), partial(_answered, claim))

    async def forgotten(self, shards: Collection[int]) -> None:
        """Have all live workflows of shards that RQ lost written to RQ; the bridge repeats a call that failed."""
        assert self._graph is not None
        for shard in shards:
            try:
                workflows = await self._ports.database.read(partial(live, shard=shard))
            except Retryable as error:
                log.info("A shard could not be shown again", extra={"shard": shard, "reason": str(error)})
                return
            for workflow in workflows:
                self._ownership.put(shard, Show(workflow), ignore, size_bytes=0)
            await self._graph.remember(shard)

    # -- without RQ -------------------------------------------------------------------------------------

    async def _without_rq(self) -> None:
        while True:
            await asyncio.sleep(BACKLOG_CHECK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._waiting = {capability: self._waiting.get(capability, now) for capability in self.room()}
            for capability, since in self._waiting.items():
                brought = max(since, self._brought.get(capability, 0.0))
                if self.bridge is None or not self.bridge.available or now - brought >= RQ_PATIENCE_SECONDS:
                    self._fill(capability)

    def _fill(self, capability: str) -> None:
        """Claim a capability's ready nodes from the ledger's index, with its free capacity shared among the shards."""
        workers = [worker for worker in self._ownership.workers.values() if capability in worker.backlog]
        self._rounds += 1
        first = self._rounds % len(workers) if workers else 0
        for left, worker in zip(range(len(workers), 0, -1), workers[first:] + workers[:first], strict=True):
            worker.fill(capability, -(-self._ports.capacity.room_for(capability) // left))


def _answered(claim: Callable[[], None], answer: object) -> None:
    """Have the node of a person's request claimed, or its state sent to RQ; else RQ reports the request again."""
    if not isinstance(answer, Retryable):
        claim()


# The bridge that brings RQ's queued jobs and people's requests in RQ to the dispatcher's shard workers.
#
# No task is executed and no job waits here: a job that RQ has queued is started and proposed in one step, and the
# ledger decides. A job that the bridge took and no dispatcher claimed, because the process died between, is found by
# `difference`.

ADOPT_SECONDS = 0.25
"""The pause between two looks at empty RQ queues, which `wake` ends when the dispatcher queued a job."""
EMPTY_QUEUE_PAUSE_SECONDS = 0.02
"""The pause before the next look for a capability of which RQ's queues had no job although capacity was free."""
RQ_CHECK_SECONDS = 1.0
"""The pause between two looks for people's requests in RQ and for a wiped Redis, and after a failure."""


class Bridge:
    """The bridge from RQ to the shard workers: one loop adopts queued jobs, another looks for people's requests."""

    def __init__(self, graph: TaskGraph, scheduler: Scheduler) -> None:
        self._graph = graph
        self._scheduler = scheduler
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
        """Take jobs from RQ's queues once, propose their nodes to the scheduler, and return how many were proposed.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
        now = asyncio.get_running_loop().time()
        self._missed = {capability: due for capability, due in self._missed.items() if due > now}
        room = {
            capability: room for capability, room in self._scheduler.room().items() if capability not in self._missed
        }
        proposals = await self._graph.adopt(self._scheduler.shards(), room)
        self.available = True
        found = {proposal.capability for proposal in proposals}
        due = now + EMPTY_QUEUE_PAUSE_SECONDS
        self._missed |= {capability: due for capability in room if capability not in found}
        if proposals:
            await self._scheduler.proposed(proposals)
        return len(proposals)

    async def look(self) -> None:
        """Pass on people's requests in RQ once, and have the shards written to RQ again whose jobs Redis has lost.

        Raises:
            TaskGraphUnavailable: when Redis does not answer; retryable.
        """
        shards = self._scheduler.shards()
        if not shards:
            return
        # before anything is written again: what people asked for while nobody looked would be overwritten
        if requests := await self._graph.requests(shards):
            await self._scheduler.requested(requests)
        known = await self._graph.known(shards)
        if lost := [shard for shard in shards if shard not in known]:
            level = logging.WARNING if self._known.intersection(lost) else logging.INFO
            log.log(level, "RQ does not have these shards; they are reconciled", extra={"shards": lost})
            await self._scheduler.forgotten(lost)
        self._known.update(known)

    async def _adopting(self) -> None:
        while True:
            self._wake.clear()
            pause = ADOPT_SECONDS
            try:
                if await self.adopt():
                    pause = 0.0
                elif self._missed:
                    pause = min(pause, EMPTY_QUEUE_PAUSE_SECONDS)
            except TaskGraphUnavailable as error:
                self._failed(error)
                pause = RQ_CHECK_SECONDS
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
            await asyncio.sleep(RQ_CHECK_SECONDS)

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
