"""Agent processes that are frozen (SIGSTOP) amid work, on real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from chaos.faults.proxy import fault_proxy
from coditect.aio.clock import SystemClock
from coditect.aio.network import BOTH, Way
from coditect.broker.management import Management
from coditect.broker.rabbitmq import AmqpBroker
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.local import PrivateServers
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.registry.port import Search
from coditect.registry.redis import RedisRegistry
from coditect.settings.addresses import vhost_of
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.eviction import ManagementEvictor, evictor
from dispatcher.liveness.fleet import Fleet as LivingAgents
from dispatcher.liveness.monitor import Monitor
from dispatcher.store.memory import MemoryDatabase
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.programs import Program
from tests.support import eventually, patient

pytestmark = [pytest.mark.servers, pytest.mark.proof]

PROMISED_SECONDS = 5.0
"""Within so long a frozen agent's work is begun elsewhere."""
TASKS = 8


@pytest.fixture
async def alone(managed: PrivateServers) -> PrivateServers:
    """The servers, when the agents of an earlier test have lapsed, and what they left at the broker is removed."""
    await eventually(lambda: _knows(managed, 0))
    left = await ManagementEvictor(Management(managed.management_url), vhost_of(managed.amqp_url)).queues()
    async with AmqpBroker(managed.amqp_url, name="before") as broker:
        for queue in filter(routing.owner_of, left):
            await broker.delete_queue(queue)
    return managed


@asynccontextmanager
async def watching(servers: PrivateServers, lost: list[AgentId]) -> AsyncIterator[Monitor]:
    owner = f"dispatcher-1-{uuid4().hex[:8]}"
    async with (
        AmqpBroker(servers.amqp_url, name=owner) as broker,
        RedisRegistry(servers.redis_url) as registry,
        MemoryDatabase() as database,
    ):
        await database.run(lambda tr: leases.renew(tr, owner, 1))
        events = Events(broker, SystemClock(), source="/dispatcher")
        async with Monitor(
            LivingAgents(registry),
            broker,
            events,
            database,
            owner=owner,
            evict=evictor(servers.management_url, vhost_of(servers.amqp_url)),
            on_gone=lost.append,
        ) as monitor:
            yield monitor


async def registered(servers: PrivateServers) -> int:
    async with RedisRegistry(servers.redis_url) as registry:
        return len(await registry.find(Search()))


async def test_frozen_agent_s_tasks_are_begun_elsewhere_and_it_goes_on_when_it_continues(
    alone: PrivateServers, tmp_path: Path
) -> None:
    lost: list[AgentId] = []
    async with open_fleet(alone, tmp_path) as fleet, client_of(alone) as client, watching(alone, lost) as monitor:
        frozen, other = await fleet.start(), await fleet.start()
        await eventually(lambda: _knows(alone, 2))
        handles, begun = await _both_begin(fleet, client, frozen)

        frozen.send_signal(signal.SIGSTOP)
        await eventually(lambda: begun <= _begun(fleet, other), seconds=patient(PROMISED_SECONDS))

        await eventually(lambda: len(lost) == 1)
        assert monitor.evicted  # the broker may list one of its two connections later
        assert [await one.result(int, timeout=100) for one in handles] == [8_000] * TASKS
        await asyncio.to_thread(frozen.send_signal, signal.SIGCONT)
        await eventually(lambda: _knows(alone, 2))
        await _takes_work_again(fleet, alone, frozen.pid)
        assert monitor.lost == 1


@pytest.mark.parametrize("way", [(Way.TO_CLIENT,), BOTH], ids=["deaf", "both"])
async def test_tasks_of_an_agent_that_is_cut_off_from_the_broker_alone_are_begun_elsewhere(
    alone: PrivateServers, tmp_path: Path, way: tuple[Way, ...], record_property: Callable[[str, object], None]
) -> None:
    lost: list[AgentId] = []
    async with (
        open_fleet(alone, tmp_path) as fleet,
        client_of(alone) as client,
        watching(alone, lost) as monitor,
        fault_proxy(alone.amqp_url) as proxy,
    ):
        parted, other = await fleet.start(CODITECT_AMQP_URL=proxy.url), await fleet.start()
        await eventually(lambda: _knows(alone, 2))
        handles, begun = await _both_begin(fleet, client, parted)
        cut_off = asyncio.get_running_loop().time()

        proxy.path.cut_off(*way)
        await eventually(lambda: begun <= _begun(fleet, other), seconds=patient(3 * PROMISED_SECONDS))

        elsewhere_after = asyncio.get_running_loop().time() - cut_off
        record_property("elsewhere_after_seconds", elsewhere_after)
        print(f"elsewhere after {elsewhere_after:.1f} s")
        assert elsewhere_after < patient(PROMISED_SECONDS)
        await eventually(lambda: monitor.evicted)
        assert [await one.result(int, timeout=100) for one in handles] == [8_000] * TASKS


async def _both_begin(fleet: Fleet, client: Client, one: Program) -> tuple[list[Handle], set[str]]:
    """Tasks of eight seconds, begun by two agents that are at work, and those of them that the one has begun.

    Agents that start late, on a busy machine, would find the tasks at their end.
    """
    handles = [await client.submit("work.do", 8_000) for _ in range(TASKS)]
    await eventually(lambda: len(fleet.noted("start")) >= TASKS)  # a lost connection repeats one
    begun = _begun(fleet, one)
    assert begun, "it proves nothing"
    return handles, begun


def _begun(fleet: Fleet, process: Program) -> set[str]:
    return {task for what, task, pid in fleet.effects() if (what, pid) == ("start", str(process.pid))}


async def _knows(servers: PrivateServers, agents: int) -> bool:
    return await registered(servers) == agents


async def _takes_work_again(fleet: Fleet, servers: PrivateServers, pid: int) -> None:
    async with client_of(servers) as client:

        async def did() -> bool:
            await client.request("work.do", 1, timeout=10)
            return fleet.effects()[-1][-1] == str(pid)

        await eventually(did)
