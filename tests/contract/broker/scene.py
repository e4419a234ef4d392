"""What every test of the contract needs: brokers of one kind, and names of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import uuid4

from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, QueueType, Topology
from coditect.model.message import Message


class FaultyBroker(Broker, Protocol):
    """A broker whose connections a test can break."""

    def drop(self) -> None:
        """Cuts its connections, as a network fault would."""


class EntityFaults(Protocol):
    """Takes away what others declared."""

    async def delete_exchange(self, name: str) -> None:
        """With its bindings."""

    async def unbind(self, binding: Binding) -> None:
        """Just that."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One test's brokers, queues and exchanges; they are removed after it."""

    prefix: str
    connect: Callable[[], Awaitable[FaultyBroker]]
    """Another process, connected."""
    faults: EntityFaults

    def name(self, short: str) -> str:
        """A name that no other test has."""
        return f"{self.prefix}.{short}"

    def exchange(self, short: str, kind: ExchangeType = ExchangeType.TOPIC, alternate: str | None = None) -> Exchange:
        return Exchange(self.name(short), kind, alternate)

    def queue(self, short: str, kind: QueueType = QueueType.QUORUM, **more: Any) -> Queue:
        more.setdefault("delivery_limit", 100 if kind is QueueType.QUORUM else None)
        return Queue(self.name(short), kind, **more)

    async def declared_queue(
        self, broker: Broker, short: str = "queue", kind: QueueType = QueueType.QUORUM, **more: Any
    ) -> str:
        queue = self.queue(short, kind, **more)
        await broker.declare(Topology(queues=(queue,)))
        return queue.name


def new_prefix() -> str:
    return f"test-{uuid4().hex[:12]}"


def topology(*entities: Exchange | Queue | Binding) -> Topology:
    return Topology(
        tuple(one for one in entities if isinstance(one, Exchange)),
        tuple(one for one in entities if isinstance(one, Queue)),
        tuple(one for one in entities if isinstance(one, Binding)),
    )


async def put(broker: Broker, queue: str, *bodies: bytes) -> None:
    """Publishes straight into the queue."""
    for body in bodies:
        await broker.publish(Message(body), exchange="", routing_key=queue)


async def got(broker: Broker, queue: str) -> Delivery:
    """The queue's first message, which is there."""
    delivery = await broker.get(queue)
    assert delivery is not None
    return delivery


async def empty(broker: Broker, queue: str) -> list[bytes]:
    """Everything that is ready in the queue, acked."""
    bodies = []
    while (delivery := await broker.get(queue)) is not None:
        bodies.append(delivery.message.body)
        delivery.ack()
    await broker.release()
    return bodies


async def ready(broker: Broker, queue: str) -> int:
    stats = await broker.stats(queue)
    assert stats is not None
    return stats.messages


async def has_ready(broker: Broker, queue: str, messages: int) -> bool:
    return await ready(broker, queue) == messages


async def collected(broker: Broker, queue: str, *, acks: bool = False, **more: Any) -> list[Delivery]:
    """What the queue delivers from now on, acked if that is asked for."""
    deliveries: list[Delivery] = []

    def take(delivery: Delivery) -> None:
        deliveries.append(delivery)
        if acks:
            delivery.ack()

    await broker.consume(queue, take, **{"prefetch": 10, **more})
    return deliveries


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def own_headers(message: Message) -> dict[str, Any]:
    """The headers without the one that RabbitMQ 3.10 adds to every delivery of a quorum queue."""
    return {name: value for name, value in message.headers.items() if name != "x-delivery-count"}
