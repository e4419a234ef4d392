"""The consumer of broadcasts to all processes: announcements of event listeners, and orders to change log levels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import Binding, Topology, event_queue
from coditect.errors import InvalidTask
from coditect.messaging.event_publisher import Events
from coditect.telemetry.logs import LogLevels
from coditect.wire import control_messages, routing
from coditect.wire.json import loads

BROADCAST_PREFETCH = 100


@asynccontextmanager
async def hearing_listeners(broker: Broker, events: Events, *, owner: str) -> AsyncIterator[None]:
    """Obey broadcasts while the block runs: publish the events that announced listeners want, and set log levels."""
    queue, levels = f"events.{owner}", LogLevels()

    def arrived(delivery: Delivery) -> None:
        body, kind = delivery.message.body, delivery.message.type
        with suppress(InvalidTask):
            if kind == control_messages.LISTEN:
                events.unmute(control_messages.listened(loads(body)))
            elif kind == control_messages.LOG_LEVEL:
                levels.carry_out(control_messages.LogLevelOrder.read(loads(body)))
        delivery.ack()

    await broker.declare(event_queue(queue, ()) + Topology(bindings=(Binding(routing.BROADCAST, queue),)))
    consumer = await broker.consume(queue, arrived, prefetch=BROADCAST_PREFETCH, group="interest")
    try:
        yield
    finally:
        await consumer.cancel()
