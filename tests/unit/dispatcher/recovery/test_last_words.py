"""A dead agent's tasks are published again and its locks released; the former owners of shards are evicted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos.faults.network import RemotePort
from chaos.simulated_store import SimulatedDatabase
from coditect import Agent
from coditect.aio.network import NetworkPath
from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, shard_queues
from coditect.errors import RegistryUnavailable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.registry.port import Registry
from coditect.testing import TestFleet
from coditect.testing.process import VirtualProcess
from coditect.wire import routing
from coditect.wire.control import Verb
from coditect.workflow.states import TaskState
from dispatcher.capacity import Capacity
from dispatcher.ledger.commands import AgentFate, Asked, Command, Lost
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.rows import NodeRecord
from dispatcher.liveness.monitor import Monitor, Roster
from dispatcher.liveness.ping import PingAnswer
from dispatcher.ports import Ports
from dispatcher.recovery.failover import AtWork, LockHolders, Predecessors
from dispatcher.shards.completions import Undone
from dispatcher.shards.in_flight import SILENT_SECONDS, InFlight
from dispatcher.shards.worker import ShardWorker
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.liveness.watch import ServerEvictor
from tests.unit.testing.workers import Sleepers

DEAD = AgentId("worker-1")
NODE = NodeKey("w", "n1")


@dataclass
class BegunWork:
    """The worker of a shard with one node, which the agent that died had begun."""

    shard: int = 0
    closed: bool = False
    stalls: bool = False
    """The store applies nothing."""
    in_flight: InFlight = field(default_factory=lambda: InFlight(Capacity(lambda: 0.0)))
    lost: list[Command] = field(default_factory=list)
    recovered: list[AgentId] = field(default_factory=list)

    def __post_init__(self) -> None:
        row = NodeRecord(TaskState.WORKING, publication=7, fence=1, agent=DEAD)
        now = asyncio.get_running_loop().time()
        self.in_flight.follow(Transition(NODE, TaskState.WORKING, "work", "p1", row), now)

    def ask(self, command: Command) -> asyncio.Future[None]:
        self.lost.append(command)
        answer = asyncio.get_running_loop().create_future()
        if not self.stalls:
            answer.set_result(None)
        return answer


@dataclass
class OneDead:
    """A monitor and roster with one dead agent, which does not answer when it is asked again in doubt."""

    asked_at: float = 0.0
    doubts: int = 0

    @property
    def roster(self) -> OneDead:
        return self

    @property
    def pings(self) -> OneDead:
        return self

    def is_gone(self, agent: AgentId) -> bool:
        return agent == DEAD

    def proved_at(self, agent: AgentId) -> float:
        return self.asked_at

    def doubt(self, agent: AgentId, now: float) -> None:
        assert agent == DEAD
        self.doubts += 1
        self.asked_at = now

    def suspect(self, names: Iterable[str], _: float) -> None:
        assert set(names) <= {DEAD}


@asynccontextmanager
async def watching(
    worker: BegunWork, server: MemoryServer | None = None, *, monitor: OneDead | None = None
) -> AsyncIterator[tuple[MemoryBroker, AtWork, Supervisor]]:
    """What a dispatcher knows that owns the worker's shard; `worker.recovered` are the agents that are over."""
    async with MemoryBroker(server or MemoryServer(), name="dispatcher") as broker, Supervisor() as background:
        await broker.declare(base_topology() + shard_queues(0))
        shards = {0: cast(ShardWorker, worker)}
        ports = cast(Ports, SimpleNamespace(broker=broker, background=background))
        watched = cast(Monitor, monitor or OneDead())
        yield broker, AtWork(ports, watched, shards, recovered=worker.recovered.append), background


async def look(at_work: AtWork) -> None:
    """The dispatcher looks at the registry, where nobody is, and has half a second until the next look."""
    at_work.look(frozenset())
    await asyncio.sleep(0.5)


@in_virtual_time
async def test_dead_agent_s_task_is_published_again_when_all_reports_have_been_read() -> None:
    worker = BegunWork()
    async with watching(worker) as (broker, at_work, _):
        await broker.publish(Message(body=b"1"), exchange=routing.RESULTS, routing_key="0")

        await look(at_work)
        assert worker.lost == []

        reading = await broker.consume(routing.results_queue(0), lambda told: told.ack(), prefetch=10)
        await asyncio.sleep(1)
        at_work.look(frozenset())  # which is under way at the next look
        assert worker.recovered == []
        await look(at_work)
        await reading.cancel()
        assert worker.lost == [Lost(NODE, 7, DEAD)]
        assert worker.recovered == [DEAD]


@in_virtual_time
async def test_dead_agent_s_task_waits_while_a_former_owner_may_hold_reports() -> None:
    worker = BegunWork()
    async with watching(worker) as (broker, at_work, _):
        former = await broker.consume(routing.results_queue(0), lambda told: told.ack(), prefetch=10)
        await broker.consume(routing.results_queue(0), lambda told: told.ack(), prefetch=10)

        await look(at_work)
        assert worker.lost == []
        await former.cancel()
        await look(at_work)

    assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_task_that_an_agent_began_after_it_counted_as_dead_is_lost_only_once_it_was_asked_again() -> None:
    worker, monitor = BegunWork(), OneDead(asked_at=-1.0)
    async with watching(worker, monitor=monitor) as (_, at_work, _):
        at_work.look(frozenset())
        await asyncio.sleep(0.5)
        assert (worker.lost, monitor.doubts) == ([], 1)

        at_work.look(frozenset())
        await asyncio.sleep(0.5)

    assert (worker.lost, monitor.doubts) == ([Lost(NODE, 7, DEAD)], 1)


@in_virtual_time
async def test_what_the_store_has_not_applied_yet_is_not_asked_for_again() -> None:
    worker = BegunWork(stalls=True)
    async with watching(worker) as (_, at_work, _):
        for _ in range(20):
            await look(at_work)

    assert worker.lost == [Lost(NODE, 7, DEAD)]
    assert worker.recovered == []


@in_virtual_time
async def test_dead_agent_s_task_waits_no_longer_than_a_silent_one_for_reports_that_never_end() -> None:
    worker = BegunWork()
    async with watching(worker) as (broker, at_work, _):
        await broker.publish(Message(body=b"1"), exchange=routing.RESULTS, routing_key="0")

        await asyncio.sleep(SILENT_SECONDS - 1)
        await look(at_work)
        assert worker.lost == []
        await asyncio.sleep(1)
        await look(at_work)

        assert worker.lost == [Lost(NODE, 7, DEAD)]


@in_virtual_time
async def test_dead_agent_s_task_waits_while_the_broker_does_not_say_what_is_unread() -> None:
    worker, server = BegunWork(), MemoryServer()
    async with watching(worker, server) as (broker, at_work, _):
        await broker.delete_queue(routing.results_queue(0))

        await look(at_work)
        server.stop()
        await look(at_work)
        server.start()

    assert worker.lost == []


class AskedMonitor(OneDead):
    """A monitor of which each agent answers a question after a while that it lives without the task."""

    def __init__(self) -> None:
        self.open = self.most = self.asked = 0

    async def ask(self, agent: AgentId, *, task_id: str) -> PingAnswer:
        self.open, self.asked = self.open + 1, self.asked + 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.1)
        self.open -= 1
        return PingAnswer.WITHOUT


@in_virtual_time
async def test_doubts_about_many_tasks_are_settled_together_with_few_open_pings() -> None:
    worker, monitor, nodes = BegunWork(stalls=True), AskedMonitor(), 500
    for number in range(nodes):
        row = NodeRecord(TaskState.WORKING, publication=number + 8, fence=2, agent="w-2", doubted=[["w-1", 1]])
        worker.in_flight.follow(Transition(NodeKey("w", f"d{number}"), TaskState.WORKING, "work", "p1", row), 0.0)
    async with watching(worker, monitor=monitor) as (_, at_work, background):
        background.start(at_work.settle_doubts(), name="settle doubts")

        await asyncio.sleep(5)

    assert (monitor.asked, monitor.most) == (nodes, 200)
    assert len({one.node_key for one in worker.lost if isinstance(one, AgentFate)}) == len(worker.lost) == nodes


GONE, BACK = AgentId("worker-gone"), AgentId("worker-back")


@dataclass
class Keeper:
    """The worker of the shard of locks, which releases a dead agent's locks in so many answers, or is closed."""

    answers: int = 1
    each: int = 1
    """How many locks each answer releases."""
    asked: list[Command] = field(default_factory=list)

    async def ask(self, command: Command) -> dict[str, Any]:
        self.asked.append(command)
        if not self.answers:
            raise Undone
        return {"released": self.each, "more": len(self.asked) < self.answers}


@dataclass
class Seen:
    """A roster with two dead agents, as long as they are gone."""

    gone: Callable[[], bool] = lambda: True
    suspects: list[str] = field(default_factory=list)

    def is_gone(self, agent: AgentId) -> bool:
        return agent in (GONE, BACK) and self.gone()

    def suspect(self, names: Iterable[str], _: float) -> None:
        self.suspects += names


class Pages:
    """A store that lists who holds locks, a page at a time."""

    def __init__(self, *pages: list[str]) -> None:
        self._pages = iter(pages)

    async def read(self, _: Callable[..., Any]) -> list[str]:
        return next(self._pages, [])


def holders(
    background: Supervisor,
    *pages: list[str],
    seen: Seen | None = None,
    freed: Callable[[AgentId], None] = lambda _: None,
) -> LockHolders:
    ports = cast(Ports, SimpleNamespace(background=background, database=Pages(*pages)))
    return LockHolders(ports, cast(Roster, seen or Seen()), freed=freed)


def released(keeper: Keeper) -> list[str]:
    """Whose locks the keeper was asked to release."""
    asked = [one for one in keeper.asked if isinstance(one, Asked) and one.verb is Verb.LOCK_RELEASE]
    assert len(asked) == len(keeper.asked)
    return [one.body["agent"] for one in asked]


@in_virtual_time
async def test_new_owner_has_all_examined_once_and_releases_what_a_dead_agent_held_before() -> None:
    keeper, monitor = Keeper(), Seen()
    async with Supervisor() as background:
        found = holders(background, ["worker-a", "worker-b"], ["worker-c"], seen=monitor)
        found.release(None, GONE)
        found.release(None, BACK)
        for owned in (None, keeper, keeper):
            found.look(cast(ShardWorker | None, owned), frozenset({BACK}))
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == [GONE]
    assert monitor.suspects == ["worker-a", "worker-b", "worker-c"]


@in_virtual_time
async def test_agent_that_counts_as_dead_and_is_not_cut_off_yet_keeps_its_locks() -> None:
    keeper = Keeper()
    async with Supervisor() as background:
        holders(background, [GONE]).look(cast(ShardWorker, keeper), frozenset())
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == []


@pytest.mark.parametrize("each", [1, 0], ids=["with locks", "without"])
@in_virtual_time
async def test_all_locks_of_a_dead_agent_are_released_however_many_they_are_and_noted_at_the_end(each: int) -> None:
    keeper, freed = Keeper(answers=3, each=each), list[tuple[AgentId, int]]()
    async with Supervisor() as background:
        found = holders(background, freed=lambda gone: freed.append((gone, len(keeper.asked))))
        found.release(cast(ShardWorker, keeper), GONE)
        await eventually(lambda: len(background) == 0)
    assert released(keeper) == [GONE] * 3
    assert freed == [(GONE, 3)] * each


@in_virtual_time
async def test_agent_that_is_back_keeps_what_it_acquired_since() -> None:
    keeper = Keeper(answers=3)
    async with Supervisor() as background:
        found = holders(background, seen=Seen(lambda: len(keeper.asked) < 2))
        found.release(cast(ShardWorker, keeper), GONE)
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == [GONE] * 2


@in_virtual_time
async def test_locks_whose_shard_moves_amid_their_release_are_released_when_it_is_back() -> None:
    closed, keeper = Keeper(answers=0), Keeper()
    async with Supervisor() as background:
        found = holders(background)
        found.release(cast(ShardWorker, closed), GONE)
        await eventually(lambda: len(background) == 0)
        found.look(cast(ShardWorker, keeper), frozenset())
        await eventually(lambda: len(background) == 0)

    assert (released(closed), released(keeper)) == ([GONE], [GONE])


class Counting(ServerEvictor):
    """An evictor that finds so many connections of each process, and the processes that it was asked for."""

    def __init__(self, *, closes: int = 2) -> None:
        super().__init__(MemoryServer())
        self.asked: list[str] = []
        self._closes = closes

    async def evict(self, process: str) -> int:
        self.asked.append(process)
        await asyncio.sleep(1)
        return self._closes


@in_virtual_time
async def test_former_owner_of_many_shards_is_evicted_once_and_nobody_waits_for_it() -> None:
    evict = Counting()
    async with Supervisor() as background, SimulatedDatabase() as database:
        ports = cast(Ports, SimpleNamespace(background=background, database=database))
        predecessors = Predecessors(ports, evict)
        began = asyncio.get_running_loop().time()
        for owner in ("ada", "ada", "bob", "ada"):
            await predecessors.evict(owner)

        assert asyncio.get_running_loop().time() == began
        await asyncio.sleep(10)

    assert evict.asked == ["ada", "bob"]


@in_virtual_time
async def test_former_owner_that_is_back_is_not_looked_for_again_until_it_is_lost_again() -> None:
    evict = Counting(closes=0)
    async with Supervisor() as background, SimulatedDatabase() as database:
        ports = cast(Ports, SimpleNamespace(background=background, database=database))
        predecessors = Predecessors(ports, evict)
        await predecessors.evict("ada")
        await database.run(lambda tr: leases.renew(tr, "ada", 7))
        await asyncio.sleep(20)
        assert evict.asked == ["ada"]

        await database.run(lambda tr: leases.leave(tr, "ada"))
        await predecessors.evict("ada")
        await asyncio.sleep(20)

    assert evict.asked == ["ada"] * 3


class CutOffFleet(TestFleet):
    """A fleet in which single agents can be cut off from the broker and from the registry."""

    def __init__(self, agents: Iterable[Agent], **options: Any) -> None:
        super().__init__(agents, **options)
        self.to_registry: dict[str, NetworkPath] = {}
        """The path from each process to the registry."""

    def _registry_of(self, process: VirtualProcess) -> Registry:
        path = self.to_registry[process.id] = NetworkPath()
        return cast(Registry, RemotePort(self.registry, path, RegistryUnavailable))


async def test_agent_that_is_back_at_the_broker_before_the_registry_keeps_what_it_begins() -> None:
    sleepers = Sleepers()
    async with CutOffFleet([sleepers.agent]) as fleet:
        [agent] = fleet.agents
        agent.broker.path.cut_off()
        fleet.to_registry[agent.id].cut_off()
        await fleet.advance("8s")
        assert [event.type for event in fleet.events].count("agent.offline") == 1

        agent.broker.path.heal()
        handle = await fleet.submit("sleep.well", 20.0, durable=True)
        await fleet.advance("15s")
        fleet.to_registry[agent.id].heal()
        await handle.result(str)

        assert sleepers.started == [agent.id]
        assert [event.type for event in fleet.events].count("agent.offline") == 1
