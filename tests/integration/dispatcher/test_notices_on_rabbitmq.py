"""Dispatchers on a real broker: notices of tasks that no agent ran, and evictions through its management API."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from coditect.aio.clock import SystemClock
from coditect.broker.management import Management, ManagementUnavailable
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, Topology, base_topology
from coditect.errors import Overloaded
from coditect.local import PrivateServers
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.registry.redis import RedisRegistry
from coditect.settings.addresses import vhost_of
from coditect.wire import routing
from dispatcher.liveness.eviction import Evictor, ManagementEvictor, close_owner
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.undeliverable import Notices
from tests.fleet import running
from tests.integration.wire import foreign, hostile
from tests.integration.wire.agent import Echo
from tests.integration.wire.foreign import Answer, blocking
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[AmqpBroker]:
    async with AmqpBroker(amqp_url, name="looker") as opened:
        yield opened


ONE = DispatcherOptions(shards=1)


@asynccontextmanager
async def dispatching(servers: Servers, registry: RedisRegistry | None = None) -> AsyncIterator[Notices]:
    """A dispatcher in this process; with the registry of a fleet it knows that fleet's capabilities."""
    async with (
        AmqpBroker(servers.amqp_url, name="dispatcher") as own,
        RedisRegistry(servers.redis_url, prefix=f"test-{uuid4().hex}:") as empty,
        running_dispatcher(broker=own, registry=registry or empty, clock=SystemClock(), options=ONE) as dispatcher,
    ):
        yield dispatcher.notices


def _reason(answer: Answer) -> object:
    return json.loads(answer.body)["reason"]


async def test_unknown_capability_is_answered_through_direct_reply_to(servers: Servers, capability: str) -> None:
    async with dispatching(servers):
        answer = await blocking(foreign.ask_directly, servers.amqp_url, capability, b"{}")

    assert _reason(answer) == "unknown_capability"


async def test_hostile_messages_without_a_queue_hold_up_nobody(servers: Servers, capability: str) -> None:
    failures: dict[str, Answer] = {}
    async with dispatching(servers) as notices:
        for bad in hostile.ALL:
            if bad.answered:
                answer = await blocking(foreign.ask, servers.amqp_url, capability, bad.body, **bad.properties)
                failures |= {bad.name: answer} if _reason(answer) != "unknown_capability" else {}
            else:
                await blocking(foreign.publish, servers.amqp_url, capability, bad.body, **bad.properties)

        assert failures == {}
        assert notices.failed.value == 0


async def test_header_tables_that_would_choke_their_reader_hold_up_nobody(servers: Servers, capability: str) -> None:
    def publish() -> None:
        with foreign.channel(servers.amqp_url) as opened:
            for encoded in (hostile.nested(5_000), hostile.void_array(120_000)):
                hostile.publish_raw_headers(opened, "coditect.tasks", capability, encoded)

    async with dispatching(servers) as notices:
        await blocking(publish)

        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

        assert _reason(answer) == "unknown_capability"
        assert notices.failed.value == 0


@pytest.mark.parametrize("bad", [{"x-coditect-deadline": "never"}, {b"\xff": 1}], ids=["wrong", "undecodable"])
async def test_bad_task_that_was_pinned_is_kept(servers: Servers, capability: str, bad: dict[object, object]) -> None:
    async with running(Echo(capability).agent(), servers) as fleet, dispatching(servers):
        headers = {"CC": [f"{capability}.p1"], "x-coditect-capability": capability, **bad}
        await blocking(
            foreign.publish,
            *(servers.amqp_url, fleet.runtime.agent_id, b"{}"),
            exchange="coditect.agents",
            headers=headers,
        )
        await eventually(lambda: fleet.holds(routing.dead_queue(capability), 1))


async def test_program_with_a_wrong_setting_ends_and_says_which(tmp_path: Path) -> None:
    environment = {**os.environ, "CODITECT_SHARDS": "none"}

    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "dispatcher"],
        env=environment,
        capture_output=True,
        timeout=100,
        check=False,
    )

    (line,) = process.stderr.decode().splitlines()
    assert process.returncode == 1
    assert "CODITECT_SHARDS" in json.loads(line)["reason"]


async def test_dispatcher_declares_its_own_queues_anyhow(servers: Servers, broker: AmqpBroker, capability: str) -> None:
    await broker.declare(base_topology())
    shard = routing.control_queue(0), routing.results_queue(0)
    for queue in (routing.UNROUTED_NOTICES, routing.DEAD_NOTICES, routing.CONTROL_QUEUE, *shard):
        await broker.delete_queue(queue)

    async with (
        AmqpBroker(servers.amqp_url, name="dispatcher", declare=False) as own,
        RedisRegistry(servers.redis_url, prefix=f"test-{uuid4().hex}:") as registry,
        running_dispatcher(broker=own, registry=registry, clock=SystemClock(), options=ONE),
    ):
        answer = await blocking(foreign.ask, servers.amqp_url, capability, b"{}")

    assert _reason(answer) == "unknown_capability"


LISTED_SECONDS = 10.0
"""The API lists a connection some 5 s after it was opened."""


@pytest.fixture
def name() -> str:
    return f"worker-{uuid4().hex[:8]}"


@pytest.fixture
def evictor(managed: PrivateServers) -> Evictor:
    return ManagementEvictor(Management(managed.management_url), vhost_of(managed.amqp_url))


async def listed(managed: PrivateServers, name: str) -> int:
    found = await Management(managed.management_url).connections()
    return sum(one.given_name.startswith(f"{name} ") for one in found)


async def test_an_evicted_process_s_work_goes_elsewhere(managed: PrivateServers, evictor: Evictor, name: str) -> None:
    held: list[Delivery] = []
    taken: list[Delivery] = []
    async with (
        AmqpBroker(managed.amqp_url, name=name) as doomed,
        AmqpBroker(managed.amqp_url, name=f"{name}0") as other,
    ):
        await doomed.declare(Topology(queues=(Queue(name, delivery_limit=10),)))
        await doomed.consume(name, held.append, prefetch=10)
        await other.publish(Message(b"{}"), exchange="", routing_key=name)
        await eventually(lambda: held)
        await other.consume(name, taken.append, prefetch=10)
        await eventually(lambda: listed_both(managed, name), seconds=LISTED_SECONDS)

        assert await evictor.evict(name) == 2

        await eventually(lambda: taken)
        assert taken[0].redelivered
        await eventually(lambda: held[0].lost)
        assert other.connected
        await eventually(lambda: doomed.connected)
        taken[0].ack()
        await other.delete_queue(name)


async def listed_both(managed: PrivateServers, name: str) -> bool:
    return await listed(managed, name) == await listed(managed, f"{name}0") == 2


async def test_former_owner_that_is_new_is_closed(managed: PrivateServers, evictor: Evictor, name: str) -> None:
    assert await evictor.evict("nobody") == 0
    async with AmqpBroker(managed.amqp_url, name=name):
        closed = await close_owner(evictor, name)

    assert closed == 2
    assert (await Management(managed.management_url).closing_version())[0] in "34"


async def test_queues_are_listed(managed: PrivateServers, evictor: Evictor, name: str) -> None:
    before = await evictor.queues()
    queues = {f"reply.{name}", routing.mailbox_queue(AgentId(name))}
    async with AmqpBroker(managed.amqp_url, name=name) as broker:
        await broker.declare(Topology(queues=tuple(map(Queue, queues))))

        assert await evictor.queues() - before == queues

        for queue in queues:
            await broker.delete_queue(queue)


async def test_messages_are_counted_where_they_wait(managed: PrivateServers, evictor: Evictor, name: str) -> None:
    full = Queue(f"{name}.full", max_length=1)
    inbox = Queue(f"{name}.inbox", dead_letter_exchange=f"{name}.on", message_ttl_ms=10)
    exchange = Exchange(f"{name}.on", ExchangeType.DIRECT)
    async with AmqpBroker(managed.amqp_url, name=name) as broker:
        await broker.declare(Topology((exchange,), (full, inbox), (Binding(exchange.name, full.name, inbox.name),)))
        with pytest.raises(Overloaded):  # of messages that come at once, a queue takes more than it has room for
            for _ in range(20):
                await broker.publish(Message(b"x"), exchange="", routing_key=full.name, wait_when_full=False)
        await broker.publish(Message(b"refused"), exchange="", routing_key=inbox.name)

        await eventually(lambda: counted(evictor, inbox.name))

        assert await evictor.messages(f"{name}.missing") is None
        for queue in (full, inbox):
            await broker.delete_queue(queue.name)


async def counted(evictor: Evictor, inbox: str) -> bool:
    """Whether the management API tells of messages, though AMQP tells of none."""
    return bool(await evictor.messages(inbox))


@pytest.mark.parametrize(
    ("address", "reason"), [("http://coditect:wrong@127.0.0.1:{port}", "password"), ("http://127.0.0.1:1", "Connect")]
)
async def test_api_that_refuses_or_is_not_there_is_told(managed: PrivateServers, address: str, reason: str) -> None:
    management = Management(address.format(port=managed.management_url.rpartition(":")[2]))

    with pytest.raises(ManagementUnavailable, match=reason):
        await ManagementEvictor(management, "/").evict("anybody")
    with pytest.raises(ManagementUnavailable, match=reason):
        await management.closing_version()
