"""One shard's worker at work over the twins, and a store that can be in doubt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.messaging.event_publisher import Events
from coditect.model.capability import Priority
from coditect.registry.port import ReferenceClock
from coditect.telemetry.metrics import COMMITS_REFUSED, RESULTS_REFUSED
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.workflow.documents.document import child_document, node_document
from coditect.workflow.graph import children_of
from dispatcher.capacity import Capacity
from dispatcher.ledger import outbox
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.workflows.recover import learn
from dispatcher.ports import Ports
from dispatcher.shards import worker as worker_module
from dispatcher.shards.in_flight import Flight
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.errors import CommitUnknown, StoreUnavailable, TransactionTimedOut
from dispatcher.store.retry import EarlierTries
from dispatcher.store.transaction import Reads, Transaction
from dispatcher.taskgraph.port import TaskGraph
from dispatcher.taskgraph.projector import Projector

Value = TypeVar("Value")
CAPABILITY = "work"
ONLY = NodeKey("w", "only")


class Doubtful(SimulatedDatabase):
    """Commits the next transaction and says that its time is up, or runs it again as `run` does by itself."""

    doubt: str = ""
    silent = 0
    """So many reads are not answered."""

    async def run(self, body: Callable[[Transaction], Value]) -> Value:
        value = await super().run(body)
        if self.doubt == "timed out":
            self.doubt = ""
            raise TransactionTimedOut("The fault that was asked for")
        return value

    async def _attempt(self, body: Callable[[Transaction], Value], earlier: EarlierTries) -> Value:
        value = await super()._attempt(body, earlier)
        if self.doubt == "repeated":
            self.doubt = ""
            raise CommitUnknown("The fault that was asked for")
        return value

    async def read(self, body: Callable[[Reads], Value]) -> Value:
        if self.silent:
            self.silent -= 1
            raise StoreUnavailable("The fault that was asked for")
        return await SimulatedDatabase.run(self, lambda tr: body(tr.snapshot))


def start_of(workflow: str, flow: Workflow | None = None) -> Asked:
    """Accepts a workflow: of the node `only`, if no other is given."""
    if flow is None:
        flow = Workflow("one")
        flow.task(CAPABILITY, name="only")
    definition = flow.definition()
    nodes = {node.name: node_document(node) for node in definition.nodes}
    head: dict[str, Any] = {"workflow": workflow, "name": definition.name, "input": None}
    if children := {child.name: child_document(child) for child in children_of(definition)}:
        head["workflows"] = children
    return Asked(Verb.START, {**head, "chunk": 1, "chunks": 1, "count": len(nodes), "nodes": nodes})


@dataclass
class LoneWorker:
    """One shard's worker at work, and what stands around it."""

    worker: ShardWorker
    ports: Ports
    database: Doubtful
    server: MemoryServer
    capacity: Capacity

    async def say(self, command: Any) -> Any:
        return await self.worker.ask(command)

    async def start(self, flow: Workflow | None = None, *, gated: bool = False) -> Any:
        """A workflow of the node `only`, if no other is given; `gated`, it comes after an approval."""
        if gated:
            flow = Workflow("one")
            flow.task(CAPABILITY, after=[flow.approval("now?", name="gate")], name="only")
        return await self.say(start_of("w", flow))

    def refused(self, reason: str) -> int:
        """How many results were refused for this reason."""
        return self.ports.metrics.counter(RESULTS_REFUSED, reason=reason).value

    @property
    def commits_refused(self) -> int:
        return self.ports.metrics.counter(COMMITS_REFUSED).value

    @property
    def flight(self) -> Flight:
        ((_, flight),) = self.worker.in_flight
        return flight

    def published(self) -> int:
        queue = self.server.find(routing.task_queue(CAPABILITY, Priority.P1))
        assert queue is not None
        return queue.stats.messages

    async def unsent(self) -> dict[int, NodeKey]:
        """The outbox: what is published, and whose confirm the ledger does not have."""
        return (await learn(self.database, self.worker.shard)).unsent

    async def is_recorded(self) -> bool:
        return await self.unsent() == {}


async def unconfirm(lone: LoneWorker) -> None:
    """As if the ledger knew of no confirm."""
    last = (await lone.database.read(lambda tr: outbox.numbers(tr, 0))).last
    await lone.database.run(lambda tr: outbox.record(tr, 0, outbox.Numbers(last)))


@asynccontextmanager
async def open_worker(graph: TaskGraph | None = None) -> AsyncIterator[LoneWorker]:
    """At work, with pauses that a test can wait for; tells the graph, if one is given."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker_module, "BATCH_RETRY_SECONDS", 0.01)
        patched.setattr(worker_module, "OUTBOX_IDLE_SECONDS", 0.01)
        async with _new_worker(graph) as lone:
            yield lone


@asynccontextmanager
async def _new_worker(graph: TaskGraph | None) -> AsyncIterator[LoneWorker]:
    server, clock, capacity = MemoryServer(), SystemClock(), Capacity(lambda: 0.0)
    async with Doubtful() as database, Supervisor() as background, MemoryBroker(server, name="dispatcher") as broker:
        await broker.declare(base_topology() + capability_queues(CAPABILITY))
        await database.run(lambda tr: shards.fix_count(tr, 1))
        step = await database.run(lambda tr: shards.step(tr, "me", 1, count=1))
        events = Events(broker, clock, source="/dispatcher")
        ports = Ports(broker, database, events, ReferenceClock(clock), background, capacity)
        lost = list[int]()
        projector = None if graph is None else Projector(graph, 0, moved=lambda: None)
        worker = ShardWorker(step.owned[0], ports, on_lost=lost.append, nudge=lambda: None, projector=projector)
        await worker.open()
        yield LoneWorker(worker, ports, database, server, capacity)
        await worker.close()
        assert lost == []
