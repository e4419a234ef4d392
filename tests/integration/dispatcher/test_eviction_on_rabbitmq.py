"""Connections closed through RabbitMQ's own management API."""

from __future__ import annotations

from uuid import uuid4

import pytest

from coditect.broker.management import Management, ManagementUnavailable
from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, Topology
from coditect.errors import Overloaded
from coditect.local import PrivateServers
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.settings.addresses import vhost_of
from coditect.wire import routing
from dispatcher.liveness.eviction import Evictor, ManagementEvictor, close_owner
from tests.support import eventually

pytestmark = pytest.mark.servers

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


async def test_an_evicted_process_s_work_goes_to_another_and_it_stands_again(
    managed: PrivateServers, evictor: Evictor, name: str, wire: str
) -> None:
    held: list[Delivery] = []
    taken: list[Delivery] = []
    async with (
        AmqpBroker(managed.amqp_url, name=name, wire=wire) as doomed,
        AmqpBroker(managed.amqp_url, name=f"{name}0", wire=wire) as other,
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


async def test_former_owner_is_closed_although_it_connected_just_now(
    managed: PrivateServers, evictor: Evictor, name: str
) -> None:
    async with AmqpBroker(managed.amqp_url, name=name):
        closed = await close_owner(evictor, name)

        assert closed == 2


async def test_nobody_of_the_name_means_nothing_to_close(evictor: Evictor) -> None:
    assert await evictor.evict("nobody") == 0


async def test_queues_are_listed(managed: PrivateServers, evictor: Evictor, name: str) -> None:
    before = await evictor.queues()
    queues = {f"reply.{name}", routing.mailbox_queue(AgentId(name))}
    async with AmqpBroker(managed.amqp_url, name=name) as broker:
        await broker.declare(Topology(queues=tuple(map(Queue, queues))))

        assert await evictor.queues() - before == queues

        for queue in queues:
            await broker.delete_queue(queue)


async def test_messages_that_a_full_queue_refuses_are_counted_where_they_wait(
    managed: PrivateServers, evictor: Evictor, name: str
) -> None:
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
    ("address", "reason"),
    [("http://coditect:wrong@127.0.0.1:{port}", "password"), ("http://127.0.0.1:1", "Connect")],
)
async def test_api_that_refuses_or_is_not_there_is_told(managed: PrivateServers, address: str, reason: str) -> None:
    management = Management(address.format(port=managed.management_url.rpartition(":")[2]))

    with pytest.raises(ManagementUnavailable, match=reason):
        await ManagementEvictor(management, "/").evict("anybody")
    with pytest.raises(ManagementUnavailable, match=reason):
        await management.closing_version()


async def test_version_of_a_broker_whose_connections_we_may_close(managed: PrivateServers) -> None:
    version = await Management(managed.management_url).closing_version()

    assert version[0] in "34"
