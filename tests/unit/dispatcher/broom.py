"""A ledger, and the one who sweeps it of what nobody needs any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coditect import Workflow
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.messaging.event_publisher import Events
from coditect.model.ids import TaskId
from coditect.registry.reference_clock import ReferenceClock
from coditect.workflow.definition import Definition
from coditect.workflow.states import WorkflowState
from dispatcher.capacity import Capacity
from dispatcher.ledger.keyspace import ROOT, RUNS
from dispatcher.ports import Ports
from dispatcher.retention import Retention
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.unit.dispatcher.lone_ledger import Ledger, completed

KEPT = {"shards", "beat", "lease", "published", "key", "key_expiry", "indexed", "shown", "autonomy"}
"""What is there without any workflow."""


class At:
    """A clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.ms = 0

    def now_ms(self) -> int:
        return self.ms

    def new_id(self) -> TaskId:
        return TaskId("id")

    def chance(self) -> float:
        return 0.5


@dataclass
class Broom:
    """A ledger and whoever sweeps it."""

    ledger: Ledger
    graph: MemoryTaskGraph
    clock: At
    retention: Retention

    async def sweep(self, *, after_ms: int = 0) -> bool:
        self.clock.ms = self.ledger.now_ms + after_ms
        return await self.retention.sweep()

    async def left(self) -> set[str]:
        """What there are keys of."""
        rows = await self.ledger.database.read(lambda tr: tr.get_range(*ROOT.range()))
        return {str(ROOT.unpack(key)[0]) for key, _ in rows}


def fan(width: int) -> Definition:
    flow = Workflow("fan")
    nodes = [flow.task("work", {"n": number}, name=f"n{number:04}") for number in range(width)]
    flow.task("sum", name="sum", after=nodes)
    return flow.definition()


async def ended(broom: Broom, workflow: str = "w", width: int = 3) -> None:
    await broom.ledger.start(fan(width), {"x": 1}, workflow=workflow)
    await broom.ledger.play(lambda _: completed("y" * 70_000))
    assert await broom.ledger.state(workflow) is WorkflowState.COMPLETED


def keeping(retention: str) -> Definition:
    flow = Workflow("keeping", retention=retention)
    flow.task("work", name="only")
    return flow.definition()


async def kept_of(broom: Broom) -> list[str]:
    rows = await broom.ledger.database.read(lambda tr: tr.get_range(*RUNS.range()))
    return [str(RUNS.unpack(key)[0]) for key, _ in rows]


@asynccontextmanager
async def open_broom() -> AsyncIterator[Broom]:
    server, clock, graph = MemoryServer(), At(), MemoryTaskGraph()
    async with MemoryDatabase() as database, Supervisor() as background, MemoryBroker(server) as broker:
        events = Events(broker, clock, source="/dispatcher")
        ports = Ports(broker, database, events, ReferenceClock(clock), background, Capacity(lambda: 0.0))
        ledger = await Ledger.open(database)
        yield Broom(ledger, graph, clock, Retention(ports, owner="me", graph=graph, keep_days=7))
