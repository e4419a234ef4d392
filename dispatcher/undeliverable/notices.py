"""The answers for tasks that no agent finished, since the capability has no queue or the broker gave the task up.

The publisher of a task is answered; for a workflow task its shard is. The answers are made from copies
(`broker.topology.notices`); the originals lie in ``unrouted`` and ``dead.<capability>`` whether a dispatcher runs or
not. Several dispatchers share the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Self

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import base_topology, notices
from coditect.errors import NotFound, Overloaded, RegistryUnavailable, Retryable, SetupError, Unroutable
from coditect.messaging.event_publisher import Events
from coditect.model.message import Message
from coditect.registry.port import Registry
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import UNDELIVERABLE
from coditect.wire import routing
from coditect.wire.addresses.return_addresses import ReturnAddresses
from coditect.wire.routing import Address
from coditect.wire.tasks import owner_of
from dispatcher.undeliverable.dropped import Dropped
from dispatcher.undeliverable.refusals import Refusal, given_up, unrouted

log = logging.getLogger(__name__)

PREFETCH = 16
"""The most unsettled copies from each queue of notices; each may be as large as the broker's message limit."""
ANSWER_SECONDS = 30.0
PAUSE_SECONDS = 1.0
MOST_TRIES = 20
KNOWN_SECONDS = 1.0
MOST_REMEMBERED = 10_000


class Notices:
    """The consumer in one dispatcher that answers the publishers of tasks that no queue took or the broker gave up.

    `async with` declares and consumes the queues of copies. At least once: an answer is confirmed before its copy is
    acked. A copy that comes again because the connection broke in between is recognised and not answered twice by the
    same process.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        events: Events,
        background: Supervisor,
        clock: Clock,
        *,
        addresses: ReturnAddresses,
        metrics: Metrics,
    ) -> None:
        self._addresses = addresses
        outcome = partial(metrics.counter, UNDELIVERABLE)
        self.answered, self.unclaimed = outcome(outcome="answered"), outcome(outcome="unclaimed")
        self.ignored, self.failed = outcome(outcome="ignored"), outcome(outcome="failed")
        self.dropped = outcome(outcome="dropped")
        self._dropped = Dropped(broker, self.dropped)
        self._clock = clock
        self._broker = broker
        self._registry = registry
        self._events = events
        self._background = background
        self._consumers: list[Consumer] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._known: frozenset[str] = frozenset()
        self._known_until = 0.0
        self._looking = asyncio.Lock()
        self._answered_keys: OrderedDict[bytes, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._broker.declare(base_topology() + notices())
        for queue in (routing.UNROUTED_NOTICES, routing.DEAD_NOTICES):
            consumer = await self._broker.consume(queue, self._arrived, prefetch=PREFETCH, group="notices")
            self._consumers.append(consumer)
        self._counting = self._background.keep(self._dropped.run, name="dropped copies", critical=False, idle=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counting.cancel()
        for consumer in self._consumers:
            await consumer.cancel()
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=ANSWER_SECONDS)

    def _arrived(self, delivery: Delivery) -> None:
        self._dropped.handed_out += delivery.queue == routing.UNROUTED_NOTICES
        work = self._background.start(self._guarded(delivery), name="notice")
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)

    async def _guarded(self, delivery: Delivery) -> None:
        """Answer for an undeliverable task and ack its copy; after an error drop it, or requeue it if retryable.

        It is requeued up to 20 times (`MOST_TRIES`).
        """
        try:
            await self._deal_with(delivery)
        except asyncio.CancelledError:
            delivery.requeue()
            raise
        except Retryable as error:
            log.warning("A notice could not be answered yet", extra={"queue": delivery.queue, "reason": str(error)})
            await self._return(delivery)
        except Exception:
            self.failed.value += 1
            log.exception("A notice could not be dealt with; it is dropped", extra={"queue": delivery.queue})
            delivery.ack()

    async def _return(self, delivery: Delivery) -> None:
        if delivery.delivery_count >= MOST_TRIES:
            self.failed.value += 1
            log.error("A notice was tried too often; it is dropped", extra={"queue": delivery.queue})
            delivery.ack()
            return
        await asyncio.sleep(PAUSE_SECONDS)
        self._dropped.handed_out -= delivery.queue == routing.UNROUTED_NOTICES
        delivery.requeue()

    async def _deal_with(self, delivery: Delivery) -> None:
        refusal = await self._refusal(delivery)
        answer = None if refusal is None else self._answer_to(delivery, refusal)
        if refusal is None or answer is None:
            self.ignored.value += 1
        else:
            await self._answer(delivery, refusal, *answer)
        if refusal is not None:
            self._tell(delivery, refusal)
        delivery.ack()

    async def _refusal(self, delivery: Delivery) -> Refusal | None:
        if delivery.queue == routing.DEAD_NOTICES:
            return given_up(delivery)
        if routing.is_results_queue(delivery.routing_key):
            return None  # an agent's report that its dispatcher could not read: no task
        return unrouted(delivery, await self._capabilities())

    def _answer_to(self, delivery: Delivery, refusal: Refusal) -> tuple[Message, Address] | None:
        """Return the answer for a refused task, and its shard's or publisher's address; None if no one is to get one.

        A workflow task without a queue is published again by its shard's orphan detector; it is no failure of the task.
        """
        message = delivery.message
        if (owned := owner_of(message)) is None:
            address = self._addresses.find(message.reply_to)
            return None if address is None else (refusal.answer(message), address)
        owner, publication = owned
        if delivery.queue != routing.DEAD_NOTICES or not owner.origin.isdecimal():
            return None
        answer = refusal.answer_to_owner(message, owner, publication, message_id=self._clock.new_id())
        return answer, Address(routing.RESULTS, owner.origin)

    async def _answer(self, delivery: Delivery, refusal: Refusal, answer: Message, address: Address) -> None:
        message = delivery.message
        key = _key(delivery)
        if delivery.redelivered and key in self._answered_keys:
            return
        try:
            if not self._addresses.reachable(address):
                raise SetupError("The broker's permissions do not allow it", entity=address.routing_key)
            await self._broker.publish(
                answer,
                exchange=address.exchange,
                routing_key=address.routing_key,
                timeout_seconds=ANSWER_SECONDS,
                wait_when_full=False,
            )
        except (Unroutable, NotFound, Overloaded, SetupError) as error:
            if isinstance(error, Overloaded) and self._broker.blocked:
                raise  # an alarm of the broker says nothing about the receiver
            self._addresses.refused(address, error)
            self.unclaimed.value += 1
            self._events.emit("task.unclaimed", subject=message.message_id or "", reply_to=message.reply_to)
            log.info("An answer has no receiver any more", extra=_facts(delivery, refusal) | {"error": str(error)})
        else:
            self.answered.value += 1
            self._remember(key)

    def _remember(self, key: bytes) -> None:
        self._answered_keys[key] = None
        if len(self._answered_keys) > MOST_REMEMBERED:
            self._answered_keys.popitem(last=False)

    def _tell(self, delivery: Delivery, refusal: Refusal) -> None:
        kind = "task.dead" if delivery.queue == routing.DEAD_NOTICES else "task.unrouted"
        self._events.emit(
            kind,
            subject=delivery.message.message_id or "",
            reason=refusal.failure.reason,
            routing_key=delivery.routing_key,
        )
        log.info("A task ended that no agent ran", extra=_facts(delivery, refusal))

    async def _capabilities(self) -> frozenset[str]:
        """Return the living agents' capabilities, at most 1 s old; empty while the registry does not answer."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now >= self._known_until:
                try:
                    self._known = await self._registry.capabilities()
                except RegistryUnavailable as error:
                    self._known = frozenset()
                    log.warning("The nearest names are unknown", extra={"reason": str(error)})
                self._known_until = now + KNOWN_SECONDS
        return self._known


def _facts(delivery: Delivery, refusal: Refusal) -> dict[str, object]:
    return {
        "task_id": delivery.message.message_id,
        "capability": refusal.capability,
        "reason": refusal.failure.reason,
        "queue": delivery.queue,
    }


def _key(delivery: Delivery) -> bytes:
    """Return a hash of the queue, ids and body of an undeliverable task's copy, the same at each redelivery."""
    message = delivery.message
    named = (delivery.queue, delivery.routing_key, message.message_id, message.correlation_id, message.reply_to)
    return blake2b(repr(named).encode(errors="replace") + message.body, digest_size=16).digest()
