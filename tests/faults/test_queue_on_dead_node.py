"""A queue whose node of the cluster is down costs its process that queue alone, until the node is back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from coditect.broker.port import Delivery
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding, Queue, QueueType, Topology, base_topology
from coditect.errors import BrokerUnavailable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import routing
from dispatcher.liveness.ping import PingAnswer, Pings
from tests.faults.node import Node
from tests.support import eventually

pytestmark = pytest.mark.servers
WATCH_SECONDS = 0.5
GONE = """\
Name = rabbit_misc:r(<<"/">>, queue, <<"{queue}">>),
Pid = binary_to_term(<<131, 88, 119, 15, "ghost@localhost", 1:32, 0:32, 1:32>>),
{{atomic, ok}} = mnesia:transaction(fun() ->
    [Queue] = mnesia:read(rabbit_durable_queue, Name),
    persistent_term:put(Name, Queue),
    ok = mnesia:delete({{rabbit_queue, Name}}),
    mnesia:write(rabbit_durable_queue, amqqueue:set_pid(Queue, Pid), write) end), ok.
"""
"""What a node's death leaves of a classic queue: the durable record, with a process on a node that is not there."""
BACK = """\
Name = rabbit_misc:r(<<"/">>, queue, <<"{queue}">>),
Queue = persistent_term:get(Name),
{{atomic, ok}} = mnesia:transaction(fun() ->
    [ok = mnesia:write(Table, Queue, write) || Table <- [rabbit_queue, rabbit_durable_queue]], ok end), ok.
"""


@asynccontextmanager
async def away(node: Node, queue: str) -> AsyncIterator[None]:
    """For as long as the block lasts, the broker says that the queue's node is down."""
    await node.evaluate(GONE.format(queue=queue))
    try:
        yield
    finally:
        await node.evaluate(BACK.format(queue=queue))


async def test_connection_serves_without_a_queue_whose_node_is_down_and_consumes_it_when_it_is_back(node: Node) -> None:
    name = uuid4().hex[:8]
    lost, kept = (Queue(f"fault-{name}-{one}", QueueType.CLASSIC) for one in ("lost", "kept"))
    bindings = tuple(Binding(routing.EVENTS, one.name, one.name) for one in (lost, kept))
    arrived: list[str] = []

    def take(delivery: Delivery) -> None:
        arrived.append(delivery.routing_key)
        delivery.ack()

    async def publish(key: str) -> None:
        await broker.publish(Message(b""), exchange=routing.EVENTS, routing_key=key, timeout_seconds=5.0)

    async with AmqpBroker(node.url, name="apart", watch_seconds=WATCH_SECONDS) as broker:
        await broker.declare(base_topology() + Topology(queues=(lost, kept), bindings=bindings))
        one, other = [await broker.consume(queue.name, take, prefetch=10) for queue in (lost, kept)]

        async with away(node, lost.name):
            broker.drop()
            await eventually(lambda: not broker.connected)
            await eventually(lambda: broker.connected and other.active)
            await publish(kept.name)
            await eventually(lambda: arrived == [kept.name])
            with pytest.raises(BrokerUnavailable, match="The node of the broker that has this queue is down"):
                await broker.stats(lost.name)
        assert not one.active
        await eventually(lambda: one.active)
        await publish(lost.name)
        await eventually(lambda: arrived[-1] == lost.name)

        for queue in (lost, kept):
            await broker.delete_queue(queue.name)


async def test_ping_of_an_agent_whose_mailbox_cannot_be_reached_proves_nothing(node: Node) -> None:
    agent = AgentId(f"agent-{uuid4().hex[:8]}")
    mailbox = Queue(routing.mailbox_queue(agent), QueueType.CLASSIC)
    binding = Binding(routing.AGENTS, mailbox.name, routing.mailbox_key(agent))
    async with AmqpBroker(node.url, name="pinging") as broker, AmqpBroker(node.url, name="owner") as owner:
        await owner.declare(base_topology() + Topology(queues=(mailbox,), bindings=(binding,)))
        async with Pings(broker, name="pings-pinging") as pings:
            async with away(node, mailbox.name):
                cannot_tell = await pings.ask(agent)
            silent = await pings.ask(agent)
            without = await pings.ask(AgentId("nobody"))
            await owner.delete_queue(mailbox.name)

    assert (cannot_tell, silent, without) == (PingAnswer.UNKNOWN, PingAnswer.SILENCE, PingAnswer.NO_MAIL)
