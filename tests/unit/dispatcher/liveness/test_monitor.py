from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from chaos.simulated_store import SimulatedDatabase
from coditect import Options
from coditect.aio.clock import SystemClock
from coditect.broker.management import Connection, Management, ManagementUnavailable
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import connection_names
from coditect.broker.topology import base_topology
from coditect.client.handle import Handle
from coditect.errors import SetupError
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from coditect.testing import State
from dispatcher.ledger.ownership import leases
from dispatcher.liveness import eviction, monitor, ping
from dispatcher.liveness.eviction import COUNT_KNOWN_SECONDS, ManagementEvictor, close_owner, evictor
from dispatcher.liveness.fleet import Fleet
from dispatcher.liveness.monitor import FLEET_CHECK_SECONDS, LEASE, RELIEF_SECONDS, SWEEP_SECONDS, Monitor
from dispatcher.store.transaction import Transaction
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.dispatcher.liveness.watch import ServerEvictor, Watch, open_watch
from tests.unit.registry.samples import IDLE, make_registration
from tests.unit.testing.workers import Sleepers

PATIENCE_SECONDS = 5.0
"""Within so long a frozen agent's work is begun elsewhere."""


class Stubborn(ServerEvictor):
    """An evictor that fails so many times, and then sees other connections of the process so many times."""

    def __init__(self, server: MemoryServer, failures: int = 0, *, others: int = 0) -> None:
        super().__init__(server)
        self.failures = failures
        self._others = others

    async def evict(self, process: str) -> int:
        if self.failures:
            self.failures -= 1
            raise ManagementUnavailable("The broker's management API does not answer")
        if self._others:
            self._others -= 1
            return 1
        return await super().evict(process)


class InTurn(Stubborn):
    """An evictor that closes the agents' connections in this order only, and takes a second to refuse."""

    def __init__(self, server: MemoryServer, left: list[AgentId]) -> None:
        super().__init__(server)
        self.left = left

    async def evict(self, process: str) -> int:
        if self.left[:1] != [process]:
            await asyncio.sleep(1.0)
            raise ManagementUnavailable("The broker's management API does not answer")
        self.left.pop(0)
        return await super().evict(process)


async def begin(watch: Watch, sleepers: Sleepers, seconds: float) -> tuple[Handle, AgentId]:
    """An agent has begun a task of so many seconds a moment ago."""
    handle = await watch.fleet.submit("sleep.well", seconds)
    await watch.fleet.advance("1s")
    (agent,) = map(AgentId, sleepers.started)
    return handle, agent


@pytest.mark.parametrize("killed", [False, True], ids=["frozen", "killed"])
async def test_work_of_a_lost_agent_is_begun_elsewhere_soon_and_once(
    watch: Watch, sleepers: Sleepers, killed: bool
) -> None:
    monitor = await watch.dispatcher(evict=watch.fleet.server)
    handle, gone = await begin(watch, sleepers, 4.0)
    watch.fleet.kill(gone) if killed else watch.fleet.pause(gone)
    gone_at = watch.fleet.elapsed_seconds
    while len(sleepers.started) == 1:
        await asyncio.sleep(0.05)
    assert watch.fleet.elapsed_seconds - gone_at < PATIENCE_SECONDS
    assert await handle.result(str) == sleepers.started[1] != gone
    await watch.fleet.advance(f"{SWEEP_SECONDS + COUNT_KNOWN_SECONDS + 1}s")
    assert len(sleepers.started) == 2
    assert monitor.evicted == (not killed), "what was killed is over for the broker, too"
    assert watch.lost["first"] == watch.told("agent.offline") == [gone]
    assert watch.queues(gone) == []


@pytest.mark.parametrize("others", [0, 1], ids=["all connections listed", "that with its tasks listed late"])
async def test_work_of_a_cut_off_agent_is_begun_elsewhere_before_its_lease_ends(
    watch: Watch, sleepers: Sleepers, others: int
) -> None:
    monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, others=others))
    handle, cut_off = await begin(watch, sleepers, 4.0)
    watch.fleet.pause(cut_off)  # it answers nothing by the broker
    told_at = watch.fleet.elapsed_seconds

    await watch.fleet.registry.renew(cut_off, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
    while len(sleepers.started) == 1:
        await asyncio.sleep(0.05)

    assert watch.fleet.elapsed_seconds - told_at < FLEET_CHECK_SECONDS + (1 + others) * RELIEF_SECONDS + 0.3
    assert (monitor.evicted, watch.lost["first"]) == (1 + others, [])
    assert await handle.result(str) == sleepers.started[1]


async def test_agent_that_says_that_it_is_cut_off_and_answers_keeps_its_work(watch: Watch, sleepers: Sleepers) -> None:
    monitor = await watch.dispatcher(evict=watch.fleet.server)
    handle, agent = await begin(watch, sleepers, 4.0)

    for _ in range(10):
        await watch.fleet.registry.renew(agent, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
        await watch.fleet.advance("200ms")

    assert await handle.result(str) == agent
    assert (monitor.evicted, watch.lost["first"]) == (0, [])


async def test_frozen_agent_that_continues_registers_again_and_works(watch: Watch, sleepers: Sleepers) -> None:
    monitor = await watch.dispatcher(evict=watch.fleet.server)
    handle, frozen = await begin(watch, sleepers, 20.0)
    watch.fleet.pause(frozen)
    await watch.fleet.advance("6s")
    assert monitor.evicted == 1

    watch.fleet.resume(frozen)
    await watch.fleet.advance("2s")
    other = next(one.id for one in watch.fleet.agents if one.id != frozen)
    watch.fleet.kill(other)
    after = await watch.fleet.submit("sleep.well", 1.0)

    assert await after.result(str) == await handle.result(str) == frozen
    assert watch.told("agent.online").count(frozen) == 2
    assert watch.lost["first"] == [frozen, other]
    assert [one.agent_id for one in await watch.fleet.registry.find(Search())] == [frozen]


async def test_agent_that_registers_again_amid_its_eviction_keeps_what_it_has_acquired_since(watch: Watch) -> None:
    monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, failures=100))
    await watch.fleet.advance("1s")
    frozen = watch.fleet.agents[0].id
    watch.fleet.pause(frozen)
    while not monitor.roster.is_gone(frozen):
        await asyncio.sleep(0.05)

    watch.fleet.resume(frozen)
    await watch.fleet.advance("20s")

    assert not monitor.roster.is_gone(frozen)
    assert watch.lost["first"] == watch.told("agent.offline") == []


@pytest.mark.parametrize("killed", [False, True])
async def test_dead_agent_in_doubt_is_asked_again_and_is_gone_or_back(watch: Watch, killed: bool) -> None:
    monitor = await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("1s")
    agent = watch.fleet.agents[0].id
    watch.fleet.pause(agent)
    await watch.fleet.advance("6s")
    assert monitor.roster.is_gone(agent)

    if killed:
        watch.fleet.kill(agent)
    else:
        watch.fleet.resume(agent)
    monitor.roster.doubt(agent, asyncio.get_running_loop().time())
    await watch.fleet.advance("6s")

    assert monitor.roster.is_gone(agent) is killed
    assert watch.lost["first"] == [agent] * (2 if killed else 1)
    assert watch.told("agent.offline") == [agent], "an agent is reported as gone once"
    assert (monitor.lost, watch.told("agent.online").count(agent)) == (1, 1 if killed else 2)


async def test_queue_of_a_dead_agent_goes_only_when_it_is_empty(watch: Watch, sleepers: Sleepers) -> None:
    await watch.dispatcher(evict=watch.fleet.server)
    gone = watch.fleet.agents[0].id
    watch.fleet.kill(gone)
    pinned = []
    for _ in range(100):
        pinned.append(await watch.fleet.submit("sleep.well", 0.01, options=Options(pin=gone)))
        await watch.fleet.advance("100ms")

    for handle in pinned:
        await handle.result(str, timeout="1m")
    await watch.fleet.advance("70s")

    assert watch.queues(gone) == []


async def test_agent_that_ends_in_order_is_told_of_and_nothing_is_closed(watch: Watch) -> None:
    monitor = await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("2s")

    (ended, *_) = await watch.fleet.drain(watch.fleet.agents[0].id)
    await watch.fleet.advance("10s")

    assert (ended.state, monitor.evicted) == (State.ENDED, 0)
    assert watch.lost["first"] == watch.told("agent.offline") == [ended.id]


async def _wipe(watch: Watch) -> None:
    for _ in range(20):
        watch.fleet.wipe_registry()
        await watch.fleet.advance("300ms")


async def _hang(watch: Watch) -> None:
    watch.fleet.registry.slow_seconds = 5.0
    await watch.fleet.advance("20s")
    watch.fleet.registry.slow_seconds = 0.0


async def _fail_and_wipe(watch: Watch) -> None:
    watch.fleet.registry.failing = True
    watch.fleet.wipe_registry()
    await watch.fleet.advance("20s")
    watch.fleet.registry.failing = False


async def _wipe_everything(watch: Watch) -> None:
    watch.fleet.server.stop()
    await watch.fleet.advance("10s")
    watch.fleet.wipe_registry()
    watch.fleet.server.start(lose_messages=True)


async def _block(watch: Watch) -> None:
    watch.fleet.server.block()
    await watch.fleet.advance("20s")
    watch.fleet.server.unblock()


async def _forget_one(watch: Watch) -> None:
    for _ in range(300):
        await watch.fleet.registry.deregister(watch.fleet.agents[0].id)
        await watch.fleet.advance("100ms")


@pytest.mark.parametrize("fault", [_wipe, _hang, _fail_and_wipe, _wipe_everything, _block, _forget_one])
async def test_no_fault_of_the_registry_or_the_broker_makes_an_agent_dead(fault: object) -> None:
    sleepers = Sleepers(slots=1)
    async with open_watch([sleepers.agent], replicas=4) as watch:
        monitor = await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")
        await fault(watch)  # type: ignore[operator]
        await watch.fleet.advance("20s")
        assert monitor.lost == monitor.evicted == 0
        assert watch.told("agent.offline") == []


async def test_frozen_while_the_registry_hangs_is_found_after_it(watch: Watch) -> None:
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("5s")
    watch.fleet.registry.failing = True
    (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
    await watch.fleet.advance("8s")
    assert watch.lost["first"] == []

    watch.fleet.registry.failing = False
    await watch.fleet.advance("5s")

    assert watch.lost["first"] == [frozen.id]


async def test_without_an_evictor_the_broker_decides(
    watch: Watch, sleepers: Sleepers, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dispatcher.liveness.monitor"):
        monitor = await watch.dispatcher(evict=None)
    handle, frozen = await begin(watch, sleepers, 4.0)
    watch.fleet.pause(frozen)

    await watch.fleet.advance("5s")
    assert watch.lost["first"] == [frozen]
    assert len(sleepers.started) == 1

    assert await handle.result(str) != frozen
    assert monitor.evicted == 0
    assert sum("10 to 15 s" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("failures", [3, 1_000])
async def test_eviction_that_fails_is_tried_again_and_the_agent_is_gone_anyhow(watch: Watch, failures: int) -> None:
    monitor = await watch.dispatcher(evict=Stubborn(watch.fleet.server, failures=failures))
    await watch.fleet.advance("2s")
    (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
    await watch.fleet.advance("9s")
    assert watch.lost["first"] == [frozen.id]
    assert monitor.evicted == (failures == 3)


async def test_agent_that_is_cut_off_is_evicted_although_another_one_is_meanwhile(watch: Watch) -> None:
    cut_off, gone = (one.id for one in watch.fleet.agents)
    evictor = InTurn(watch.fleet.server, [gone, cut_off])
    monitor = await watch.dispatcher(evict=evictor)
    await watch.fleet.advance("1s")
    watch.fleet.pause(cut_off)
    watch.fleet.pause(gone)

    for _ in range(40):
        await watch.fleet.registry.renew(cut_off, Load(AgentStatus.OFFLINE), lease_seconds=1.5)
        await watch.fleet.advance("200ms")

    assert (evictor.left, monitor.evicted, watch.lost["first"]) == ([], 2, [gone])
    (offline,) = [event for event in watch.fleet.events if event.type == "agent.offline"]
    assert offline.data["connections"] == 1


async def test_agent_is_found_dead_although_the_store_is_slow(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimulatedDatabase.run

    async def slow(database: SimulatedDatabase, body: Callable[[Transaction], object]) -> object:
        await asyncio.sleep(2.0)
        return await run(database, body)

    await watch.dispatcher(evict=watch.fleet.server)
    monkeypatch.setattr(SimulatedDatabase, "run", slow)
    await watch.fleet.advance("10s")
    (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
    await watch.fleet.advance("20s")

    assert watch.lost["first"] == [frozen.id]


async def test_two_dispatchers_both_notice_and_one_acts(watch: Watch) -> None:
    first = await watch.dispatcher("first", evict=watch.fleet.server)
    second = await watch.dispatcher("second", evict=watch.fleet.server)
    await watch.fleet.advance("2s")
    assert (first.leads, second.leads) == (True, False)
    (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)

    await watch.fleet.advance("9s")

    assert watch.lost["first"] == watch.lost["second"] == [frozen.id]
    assert (first.evicted, second.evicted) == (1, 0)
    assert watch.told("agent.offline") == [frozen.id]


async def test_when_the_one_that_acts_ends_in_the_middle_the_other_acts_in_its_place(watch: Watch) -> None:
    await watch.dispatcher("first", evict=Stubborn(watch.fleet.server, failures=1_000))
    second = await watch.dispatcher("second", evict=watch.fleet.server)
    await watch.fleet.advance("2s")
    (frozen,) = watch.fleet.pause(watch.fleet.agents[0].id)
    await watch.fleet.advance("4s")

    await watch.end("first")
    await watch.fleet.advance("4s")

    assert second.leads
    assert second.evicted == 1
    assert watch.lost["second"] == [frozen.id]


MANY_STEPS = 120
"""Of the event loop: an agent is found, pinged, cut off, and its queues removed within fewer."""


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the monitor waits for is over in a step of the event loop."""
    monkeypatch.setattr(monitor, "FLEET_CHECK_SECONDS", 0)
    monkeypatch.setattr(monitor, "EVICTION_PAUSES", (0, 0))
    monkeypatch.setattr(eviction, "TIDY_PAUSES", (0, 0))
    monkeypatch.setattr(ping, "PONG_SECONDS", 0)


class Watched:
    """A monitor over one agent that does not answer; broker and store outlive it."""

    def __init__(self, broker: MemoryBroker, database: SimulatedDatabase) -> None:
        self.broker = broker
        self.database = database
        self.lost: list[AgentId] = []

    async def watch(self, lease_seconds: float = 0.001) -> None:
        registry = MemoryRegistry()
        await registry.register(make_registration(), IDLE, lease_seconds=lease_seconds)
        await self.database.run(lambda tr: leases.renew(tr, "first", 1))
        events = Events(self.broker, SystemClock(), source="/dispatcher")
        ports = (Fleet(registry), self.broker, events, self.database)
        async with Monitor(*ports, owner="first", evict=None, on_gone=self.lost.append):
            await asyncio.Event().wait()

    async def canceled(self, steps: int, *again: int) -> asyncio.Task[None]:
        """Watches for so many steps of the event loop; then is canceled, and again after some more."""
        watching = asyncio.create_task(self.watch())
        for count in (steps, *again):
            for _ in range(count):
                await asyncio.sleep(0)
            watching.cancel()
        await asyncio.wait([watching], timeout=5)
        return watching

    async def consumers(self) -> int:
        stats = await self.broker.stats("reply.monitor-first")
        return 0 if stats is None else stats.consumers

    async def leader(self) -> str:
        return (await self.database.read(lambda tr: leases.read(tr, LEASE))).owner


@asynccontextmanager
async def opened() -> AsyncIterator[Watched]:
    async with SimulatedDatabase() as database, MemoryBroker(MemoryServer(), name="first") as broker:
        await broker.declare(base_topology())
        before = asyncio.all_tasks()
        yield Watched(broker, database)
        assert asyncio.all_tasks() == before, "no task is left"


@pytest.mark.usefixtures("without_pauses")
async def test_monitor_that_is_canceled_at_any_step_ends_and_leaves_nothing() -> None:
    for steps in range(MANY_STEPS):
        async with opened() as watched:
            watching = await watched.canceled(steps)

            assert watching.cancelled(), steps
            assert (await watched.consumers(), await watched.leader()) == (0, ""), steps


@pytest.mark.usefixtures("without_pauses")
async def test_monitor_that_is_canceled_after_it_lost_an_agent_leaves_nothing() -> None:
    async with opened() as watched:
        watching = asyncio.create_task(watched.watch(lease_seconds=0.5))
        await eventually(lambda: bool(watched.lost))
        watching.cancel()
        await asyncio.wait([watching], timeout=5)

        assert watching.cancelled()
        assert (await watched.consumers(), await watched.leader()) == (0, "")


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("again", range(6))
async def test_monitor_that_is_canceled_again_while_it_ends_leaves_no_task(again: int) -> None:
    for steps in range(again % 4, MANY_STEPS, 8):
        async with opened() as watched:
            watching = await watched.canceled(steps, again)

            assert watching.cancelled(), steps
            assert await watched.consumers() == 0, steps


class Listing(Management):
    """The management API of a broker with these connections."""

    def __init__(self, *connections: Connection) -> None:
        super().__init__("http://localhost")
        self.open_connections = list(connections)
        self.listed = 0
        self.down = False

    async def connections(self) -> tuple[Connection, ...]:
        self.listed += 1
        await asyncio.sleep(0.01)
        if self.down:
            raise ManagementUnavailable("The broker's management API does not answer")
        return tuple(self.open_connections)

    async def queues(self, vhost: str) -> frozenset[str]:
        if self.down:
            raise ManagementUnavailable("The broker's management API does not answer")
        return frozenset()

    async def close(self, connection: Connection, *, reason: str) -> bool:
        if connection not in self.open_connections:
            return False
        self.open_connections.remove(connection)
        return True


def connections_of(*processes: str) -> list[Connection]:
    return [Connection(f"{name}!", name) for process in processes for name in connection_names(process)]


@in_virtual_time
async def test_only_the_process_of_exactly_this_name_is_closed() -> None:
    api = Listing(*connections_of("worker-1", "worker-11", "my worker-1"), Connection("x", ""))

    assert await ManagementEvictor(api, "/").evict("worker-1") == 2

    assert api.open_connections == [*connections_of("worker-11", "my worker-1"), Connection("x", "")]


@pytest.mark.parametrize("down", [False, True])
@in_virtual_time
async def test_many_at_once_share_listings_that_began_after_they_asked_and_their_failures(down: bool) -> None:
    names = [f"worker-{number}" for number in range(50)]
    api = Listing(*connections_of(*names))
    api.down = down
    evict = ManagementEvictor(api, "/")
    closed = await asyncio.gather(*(evict.evict(name) for name in names), return_exceptions=True)
    api.down = False

    assert [type(one) if down else one for one in closed] == [ManagementUnavailable if down else 2] * 50
    assert api.listed <= 2
    assert await evict.evict("worker-1") == (2 if down else 0)


@pytest.mark.parametrize("asks_last", ["connections", "queues"])
@in_virtual_time
async def test_failure_is_told_once_and_its_end_once(asks_last: str, caplog: pytest.LogCaptureFixture) -> None:
    api = Listing()
    evict = ManagementEvictor(api, "/")
    with caplog.at_level(logging.INFO, "dispatcher.liveness.eviction"):
        for api.down in (True, True, True):
            for asked in (evict.evict("worker-1"), evict.queues()):
                with suppress(ManagementUnavailable):
                    await asked
        api.down = False
        for _ in range(2):
            await (evict.queues() if asks_last == "queues" else evict.evict("worker-1"))

    told = [one.levelno for one in caplog.records if one.name == "dispatcher.liveness.eviction"]
    assert told == [logging.WARNING, logging.INFO]


@in_virtual_time
async def test_former_owner_is_looked_for_twice_because_the_list_is_late() -> None:
    api = Listing()
    closing = asyncio.create_task(close_owner(ManagementEvictor(api, "/"), "ada"))
    await asyncio.sleep(1)
    api.open_connections += connections_of("ada")

    assert await closing == 2


class Hanging(ServerEvictor):
    async def evict(self, process: str) -> int:
        await asyncio.sleep(1_000)
        return 2


@in_virtual_time
async def test_taking_over_never_fails_and_never_waits_for_ever() -> None:
    began = asyncio.get_running_loop().time()
    down = Listing()
    down.down = True

    for evict in (None, ManagementEvictor(down, "/"), Hanging(MemoryServer())):
        assert await close_owner(evict, "ada") == 0
    assert await close_owner(ManagementEvictor(down, "/"), "") == 0

    assert asyncio.get_running_loop().time() - began < 20


def test_without_the_setting_there_is_no_evictor_and_a_wrong_one_is_refused() -> None:
    assert evictor(None, "/") is None
    with pytest.raises(SetupError):
        evictor("localhost", "/")
