"""The consumer of event listeners' announcements, which ends the suppression of events that had no listener."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import Binding, Topology, event_queue
from coditect.errors import InvalidTask
from coditect.messaging.event_publisher import Events
from coditect.wire import control_messages, routing
from coditect.wire.json import loads

PREFETCH = 100


@asynccontextmanager
async def hearing_listeners(broker: Broker, events: Events, *, owner: str) -> AsyncIterator[None]:
    """Consume announcements of event listeners while the block runs, and stop dropping the events that they want."""
    queue = f"events.{owner}"

    def arrived(delivery: Delivery) -> None:
        if delivery.message.type == control_messages.LISTEN:
            with suppress(InvalidTask):
                events.unmute(control_messages.listened(loads(delivery.message.body)))
        delivery.ack()

    await broker.declare(event_queue(queue, ()) + Topology(bindings=(Binding(routing.BROADCAST, queue),)))
    consumer = await broker.consume(queue, arrived, prefetch=PREFETCH, group="interest")
    try:
        yield
    finally:
        await consumer.cancel()
