"""Proposing: what RQ has queued is claimed as room appears; what RQ does not bring is claimed without it.

RQ holds the backlog, and the bridge takes from it by priority. When it brings nothing although there is room and the
ledger knows of ready nodes, for as long as `PATIENCE_SECONDS`, or when Redis does not answer, the ready index is
claimed from instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

from coditect.agent.presence import TASK_PREFIX
from coditect.model.capability import Priority
from coditect.model.control import Verb
from dispatcher.commands import Asked, Proposed, Show
from dispatcher.graph.bridge import Bridge
from dispatcher.graph.port import Proposal, Request, RequestKind, TaskGraph
from dispatcher.layers.ledger.effects import Place
from dispatcher.layers.shards import shard_of
from dispatcher.ports import Ports
from dispatcher.queries import live
from dispatcher.settling import NOTHING
from dispatcher.tenure import Tenure

PATIENCE_SECONDS = 1.0
LOOK_SECONDS = 0.25
MOST_ROOM = 500


class Proposing:
    """Serves the bridge for one dispatcher's desks."""

    def __init__(self, ports: Ports, tenure: Tenure, graph: TaskGraph | None) -> None:
        self._ports = ports
        self._tenure = tenure
        self._graph = graph
        self._brought_at = 0.0
        self._starved_since: float | None = None
        self.bridge = None if graph is None or not ports.ways.from_rq else Bridge(graph, self)

    async def run(self) -> None:
        """Works until it is canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._without_rq(), name=f"{TASK_PREFIX}backlogs")
            if self.bridge is not None:
                group.create_task(self.bridge.run())

    def nudge(self) -> None:
        """There is room, or something waits for it."""
        if self.bridge is not None:
            if self._waits_for_room():
                self.bridge.wake()
            if self.bridge.available:
                return
        self._fill()

    # -- for the bridge ---------------------------------------------------------------------------------

    def shards(self) -> Collection[int]:
        """The shards that are worked for here."""
        return tuple(self._tenure.desks)

    def room(self) -> Mapping[Priority, int]:
        """How many nodes would be published now: as many as their capabilities have room for."""
        room = self._room()
        return dict.fromkeys(Priority, room) if room > 0 else {}

    async def proposed(self, proposals: Sequence[Proposal]) -> None:
        """They are claimed, if the ledger agrees."""
        self._brought_at = asyncio.get_running_loop().time()
        for proposal in proposals:
            self._tell(Place(proposal.workflow, proposal.node))

    def _tell(self, place: Place) -> None:
        shard = shard_of(place.workflow, self._tenure.count)
        self._tenure.put(shard, Proposed(place), NOTHING, size_bytes=0)

    async def requested(self, requests: Sequence[Request]) -> None:
        """What people asked for with RQ's tools; a job that a stock worker took is told what it is."""
        for request in requests:
            shard = shard_of(request.workflow, self._tenure.count)
            body = {"workflow": request.workflow, "node": request.node, "reason": "canceled in RQ"}
            match request.kind:
                case RequestKind.CANCEL:
                    self._tenure.put(shard, Asked(Verb.CANCEL, body), NOTHING, size_bytes=0)
                case RequestKind.REQUEUE:
                    self._tenure.put(shard, Asked(Verb.REDRIVE, body), NOTHING, size_bytes=0)
                case RequestKind.STRAY:
                    pass
            # where that was refused, or changed nothing, RQ is told what is: else the request would stand for ever
            self._tell(Place(request.workflow, request.node))

    async def forgotten(self, shards: Collection[int]) -> None:
        """RQ does not have these shards: all their live workflows are shown anew."""
        assert self._graph is not None
        for shard in shards:
            for workflow in await self._ports.database.read(lambda tr, shard=shard: live(tr, shard)):  # type: ignore[misc]
                self._tenure.put(shard, Show(workflow), NOTHING, size_bytes=0)
            await self._graph.remember(shard)

    # -- without RQ -------------------------------------------------------------------------------------

    async def _without_rq(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = asyncio.get_running_loop().time()
            if not self._waits_for_room() or self._room() <= 0:
                self._starved_since = None
                continue
            if self._starved_since is None:
                self._starved_since = now
            since = max(self._starved_since, self._brought_at)
            if self.bridge is None or not self.bridge.available or now - since >= PATIENCE_SECONDS:
                self._fill()

    def _fill(self) -> None:
        if self._ports.ways.from_index:
            for desk in tuple(self._tenure.desks.values()):
                desk.fill()

    def _waits_for_room(self) -> bool:
        return any(desk.backlog for desk in self._tenure.desks.values())

    def _room(self) -> int:
        """Of the capabilities that wait, together."""
        waiting = set(chain.from_iterable(desk.backlog for desk in self._tenure.desks.values()))
        return min(MOST_ROOM, sum(max(0, self._ports.window.room_for(capability)) for capability in waiting))
