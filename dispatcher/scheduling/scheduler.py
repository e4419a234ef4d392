"""The scheduler, which claims ready nodes while capacity permits: from RQ's queues, or without RQ from the ledger.

RQ holds the backlog, and the bridge takes jobs from it by priority, up to the capacity of each capability. The ledger's
ready index is claimed from instead when Redis does not answer, or when RQ brings no job of a capability for
`PATIENCE_SECONDS` although capacity is free and the ledger knows of ready nodes.

The capacity for nodes on their way to the claim is reserved until the claim is committed, so that no more are taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from coditect.errors import CoditectError, Retryable
from coditect.wire.control import Verb
from dispatcher.ledger.commands import Asked, Command, Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.workflows.status import live
from dispatcher.ports import Ports
from dispatcher.shards.completions import NOTHING, Settle
from dispatcher.shards.ownership import ShardOwnership
from dispatcher.taskgraph.bridge import Bridge
from dispatcher.taskgraph.port import Proposal, RequestKind, TaskGraph, ToolRequest

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0
LOOK_SECONDS = 0.25
MOST_OF_A_COMMAND = 64
"""The most nodes that one command to a shard worker claims."""
CLAIM_BYTES = 4_000
"""The estimated bytes that the claim of one node adds to a batch, against the batch's limit."""


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
        self.bridge = None if graph is None or not ports.ways.from_rq else Bridge(graph, self)

    def open(self) -> None:
        """Start the loops that claim ready nodes: from RQ's queues, and from the ledger's ready index."""
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
        settle: Settle = NOTHING
        if capability:
            self._ports.capacity.keep(capability, len(node_keys))
            settle = _KeptCapacity(self, capability, len(node_keys))
        self._put(shard, Proposed(node_keys, capability), settle, size_bytes=CLAIM_BYTES * len(node_keys))

    def settled(self, capability: str, number: int, *, claimed: bool) -> None:
        """Free the publishing capacity reserved for nodes that RQ proposed; if any was claimed, record the time."""
        self._ports.capacity.free(capability, number)
        if claimed:
            self._brought[capability] = asyncio.get_running_loop().time()

    def tell(self, node_key: NodeKey) -> None:
        """Have the shard worker claim a node if it is ready and capacity is free, or else send its state to RQ."""
        self._propose(self._shard_of(node_key.workflow), "", (node_key,))

    def _shard_of(self, workflow: str) -> int:
        return shard_of(workflow, self._ownership.count)

    def _put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int = 0) -> None:
        if not self._ownership.put(shard, command, settle, size_bytes=size_bytes):
            settle.undone()

    async def requested(self, requests: Sequence[ToolRequest]) -> None:
        """Carry out what people or stock workers did to RQ's jobs: cancel a workflow, redrive a node, or correct a job.

        A person's cancel of a job cancels its workflow, and a requeue redrives its node. A job that a stock RQ worker
        took by mistake is claimed or gets the ledger's state.
        """
        for request in requests:
            node_key = NodeKey(request.workflow, request.node)
            body = {"workflow": request.workflow, "node": request.node, "reason": "canceled in RQ"}
            match request.kind:
                case RequestKind.CANCEL:
                    self._put(self._shard_of(node_key.workflow), Asked(Verb.CANCEL, body), _Answered(self, node_key))
                case RequestKind.REQUEUE:
                    self._put(self._shard_of(node_key.workflow), Asked(Verb.REDRIVE, body), _Answered(self, node_key))
                case RequestKind.STRAY:
                    self.tell(node_key)

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
                self._ownership.put(shard, Show(workflow), NOTHING, size_bytes=0)
            await self._graph.remember(shard)

    # -- without RQ -------------------------------------------------------------------------------------

    async def _without_rq(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            self._waiting = {capability: self._waiting.get(capability, now) for capability in self.room()}
            for capability, since in self._waiting.items():
                brought = max(since, self._brought.get(capability, 0.0))
                if self.bridge is None or not self.bridge.available or now - brought >= PATIENCE_SECONDS:
                    self._fill(capability)

    def _fill(self, capability: str) -> None:
        """Claim a capability's ready nodes from the ledger's index, with its free capacity shared among the shards."""
        if not self._ports.ways.from_index:
            return
        workers = [worker for worker in self._ownership.workers.values() if capability in worker.backlog]
        self._rounds += 1
        first = self._rounds % len(workers) if workers else 0
        for left, worker in zip(range(len(workers), 0, -1), workers[first:] + workers[:first], strict=True):
            worker.fill(capability, -(-self._ports.capacity.room_for(capability) // left))


@dataclass(frozen=True, slots=True)
class _KeptCapacity:
    """The callbacks of a command to claim nodes that RQ proposed, which free the capacity reserved for the nodes."""

    scheduler: Scheduler
    capability: str
    number: int

    def done(self, answer: Any) -> None:
        """Free the reserved capacity, because the ledger has claimed or refused the nodes, or the command failed."""
        claimed = not isinstance(answer, CoditectError) and answer > 0
        self.scheduler.settled(self.capability, self.number, claimed=claimed)

    def undone(self) -> None:
        """Free the reserved capacity, because this dispatcher does not, or no longer, own the shard."""
        self.scheduler.settled(self.capability, self.number, claimed=False)


@dataclass(frozen=True, slots=True)
class _Answered:
    """The callbacks of a person's cancel or requeue of a job in RQ: then claim the node, or send its state to RQ.

    Not after a retryable error: RQ then reports the request again.
    """

    scheduler: Scheduler
    node_key: NodeKey

    def done(self, answer: Any) -> None:
        """Have the node claimed if ready, or else its state sent to RQ; do nothing after a retryable error.

        RQ then reports the request again.
        """
        if not isinstance(answer, Retryable):
            self.scheduler.tell(self.node_key)

    def undone(self) -> None:
        """Do nothing when the shard was lost, since its new owner finds the person's request in RQ."""
