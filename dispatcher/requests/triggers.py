"""The queues of the triggers, whose events the owner of a trigger's shard reads and gives to the shard's worker."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

from coditect.broker.port import Consumer, Delivery
from coditect.broker.topology import trigger_queue
from coditect.errors import CoditectError, InputError, InvalidTask, Retryable, TooLarge, Unroutable
from coditect.model.message import Event
from coditect.telemetry.metrics import TRIGGER_EVENTS
from coditect.wire import control_messages, routing
from coditect.wire.control import Verb, request
from coditect.wire.events import read_event
from coditect.wire.tasks import MAX_BODY_BYTES
from dispatcher.coordination import trigger_rows as rows
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ports import Ports
from dispatcher.shards.completions import Undone
from dispatcher.shards.ownership import ShardOwnership

log = logging.getLogger(__name__)

TRIGGER_EVENTS_PREFETCH = 100
TRIGGER_PUBLISH_SECONDS = 30.0
TRIGGER_RETRY_SECONDS = 1.0
"""The pause before an event goes back to its queue, and before a queue that could not be opened is tried again."""
OWN_EVENTS = "trigger."
"""The prefix of the types of events about triggers; no trigger reacts to them, since some report its failures."""


class TriggerQueues:
    """The consumers of the queues of all active triggers whose shards the dispatcher owns."""

    def __init__(self, ports: Ports, shards: ShardOwnership) -> None:
        self._broker = ports.broker
        self._database = ports.database
        self._shards = shards
        self._background = ports.background
        self._clock = ports.clock
        outcome = partial(ports.metrics.counter, TRIGGER_EVENTS)
        self.taken, self.unreadable = outcome(outcome="taken"), outcome(outcome="unreadable")
        self._consumers: dict[str, Consumer] = {}
        self._changing = asyncio.Lock()

    def opened(self, shard: int) -> None:
        """Begin to read the events of the shard's triggers, in the background."""
        self._background.start(self._open_all(shard), name=f"triggers of shard {shard}")

    def closed(self, shard: int) -> None:
        """Stop reading the events of the shard's triggers; the shard's next owner reads them."""
        self._background.start(self._close_all(), name=f"end of the triggers of shard {shard}")

    async def _open_all(self, shard: int) -> None:
        while shard in self._shards.workers:
            try:
                async with self._changing:
                    await self._try_all(shard)
                return
            except CoditectError as error:
                log.warning("The triggers cannot be read yet", extra={"shard": shard, "reason": str(error)})
                await asyncio.sleep(TRIGGER_RETRY_SECONDS)

    async def _try_all(self, shard: int) -> None:
        """Open the queues of the shard's active triggers; an error holds up no other, and is raised at the end."""
        missed: CoditectError | None = None
        for trigger in await self._database.read(rows.TRIGGERS.every):
            if trigger.state == "active" and self._shard(trigger.trigger) == shard:
                try:
                    await self._open(trigger.trigger, trigger.event)
                except CoditectError as error:
                    missed = error
        if missed is not None:
            raise missed

    async def _close_all(self) -> None:
        async with self._changing:
            for name in [name for name in self._consumers if self._shard(name) not in self._shards.workers]:
                await self._consumers.pop(name).cancel()

    async def changed(self, name: str) -> None:
        """Make an empty queue for an added or resumed trigger, or delete that of a paused or removed one; idempotent.

        Raises:
            CoditectError: any error of the broker or the store.
        """
        async with self._changing:
            trigger = await self._database.read(lambda tr: rows.TRIGGERS.read(tr, name))
            if trigger is not None and trigger.state == "active":
                if name not in self._consumers:  # what a queue of the name holds was meant for an earlier trigger
                    await self._broker.delete_queue(routing.trigger_queue(name))
                await self._open(name, trigger.event)
                return
            if (consumer := self._consumers.pop(name, None)) is not None:
                await consumer.cancel()
            await self._broker.delete_queue(routing.trigger_queue(name))

    async def _open(self, name: str, pattern: str) -> None:
        if name in self._consumers:
            return
        queue = routing.trigger_queue(name)
        await self._broker.declare(trigger_queue(queue, pattern))
        take = partial(self._arrived, name)
        self._consumers[name] = await self._broker.consume(
            queue, take, prefetch=TRIGGER_EVENTS_PREFETCH, group="triggers"
        )
        try:  # agents are silent about events that nobody listened to
            await self._broker.publish(
                control_messages.listen(),
                exchange=routing.BROADCAST,
                routing_key="",
                timeout_seconds=TRIGGER_PUBLISH_SECONDS,
            )
        except Unroutable:
            log.debug("No agent is there to be told that a trigger listens")

    def _shard(self, name: str) -> int:
        return shard_of(rows.shard_key(name), self._shards.count)

    def _arrived(self, name: str, delivery: Delivery) -> None:
        """Give an event to the worker of its trigger's shard; ack events about triggers, reject unreadable ones."""
        try:
            if len(delivery.message.body) > MAX_BODY_BYTES:
                raise TooLarge("An event is over the limit", bytes=len(delivery.message.body), limit=MAX_BODY_BYTES)
            event = read_event(delivery.message, self._clock.now_ms())
        except InputError as error:
            self._refuse(delivery, error, trigger=name)
            return
        if event.type.startswith(OWN_EVENTS):
            delivery.ack()
            return
        command = Asked(Verb.TRIGGER_FIRE, {"trigger": name, "event": _document(event)})
        settle = partial(self._fired, delivery)
        if not self._shards.put(self._shard(name), command, settle, size_bytes=len(delivery.message.body)):
            self._give_back_later(delivery)

    def _fired(self, delivery: Delivery, answer: Any) -> None:
        """Ack the event, after sending the signal that it triggers, if any; after a retryable error give it back."""
        if isinstance(answer, Undone):
            delivery.requeue()  # for the shard's next owner
            return
        if isinstance(answer, Retryable):
            self._give_back_later(delivery)
            return
        self.taken.value += 1
        if isinstance(answer, CoditectError):
            log.info("An event has no trigger any more", extra={"reason": str(answer)})
            delivery.ack()
        elif "signal" in answer:
            self._background.start(self._send(delivery, answer["signal"]), name="signal by event")
        else:
            delivery.ack()

    def _refuse(self, delivery: Delivery, error: InputError, **facts: str) -> None:
        self.unreadable.value += 1
        log.warning("An event cannot be used; it is a dead letter", extra={**facts, "reason": str(error)})
        delivery.reject()

    def _give_back_later(self, delivery: Delivery) -> None:
        """Return an event to its queue after a pause, in the background; the shard's owner by then reads it again."""
        self._background.start(self._give_back(delivery), name="event goes back")

    async def _give_back(self, delivery: Delivery) -> None:
        try:
            await asyncio.sleep(TRIGGER_RETRY_SECONDS)
        finally:
            delivery.requeue()

    async def _send(self, delivery: Delivery, signal: dict[str, Any]) -> None:
        """Send an event's signal to its workflow's shard; ack the event, or give it back on failure.

        An event whose signal can never be sent becomes a dead letter.
        """
        try:
            await self._broker.publish(
                request(Verb.SIGNAL, signal, reply_to=None, correlation_id=signal["id"]),
                exchange=routing.CONTROL,
                routing_key=str(shard_of(signal["workflow"], self._shards.count)),
                timeout_seconds=TRIGGER_PUBLISH_SECONDS,
            )
        except InvalidTask as error:  # sent again, it would be refused again
            self._refuse(delivery, error, signal=signal["signal"])
        except CoditectError as error:
            log.info("A signal could not be sent; its event comes again", extra={"reason": str(error)})
            await self._give_back(delivery)
        else:
            delivery.ack()


def _document(event: Event) -> dict[str, Any]:
    """Return an event as the JSON object that a trigger's expressions read."""
    return {
        "type": event.type,
        "source": event.source,
        "id": event.id,
        "subject": event.subject,
        "time_ms": event.time_ms,
        "data": dict(event.data),
    }
