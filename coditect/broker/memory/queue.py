"""An in-memory queue: its ready messages, its consumers, the deliveries that processes hold, and its dead letters."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import Any

from coditect.aio.network import NetworkPath, Way
from coditect.broker.port import QueueStats
from coditect.broker.topology import Queue, QueueType
from coditect.model.message import HeaderTable, Message

# Dead-lettering as RabbitMQ does it: the new routing key and the `x-death` history of a message.
#
# The shape is RabbitMQ 3.10's: one entry per queue and reason, the latest first, counted; the first death again in
# three headers of its own. `expiration` is removed; `CC` too when the queue has a key of its own for dead letters.
# https://www.rabbitmq.com/docs/dlx

DEATHS = "x-death"


class Reason(StrEnum):
    """The reason for which a queue dead-lettered a message."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    DELIVERY_LIMIT = "delivery_limit"
    MAXLEN = "maxlen"


def routing_keys(message: Message, routing_key: str) -> tuple[str, ...]:
    """Return all keys by which a message is routed: its routing key and the keys in its `CC` header."""
    carbon = message.headers.get("CC")
    if not isinstance(carbon, list):
        return (routing_key,)
    return (routing_key, *(key for key in carbon if isinstance(key, str)))


def dead_letter(
    message: Message, *, exchange: str, routing_key: str, queue: Queue, reason: Reason, at_ms: int
) -> tuple[Message, str]:
    """Return a message without expiration, its death added to `x-death`, and its key for the dead-letter exchange."""
    headers = dict(message.headers)
    death = {
        "count": 1,
        "reason": reason.value,
        "queue": queue.name,
        "time": datetime.fromtimestamp(at_ms // 1000, UTC),
        "exchange": exchange,
        "routing-keys": list(routing_keys(message, routing_key)),
    }
    if message.expiration_ms is not None:
        death["original-expiration"] = str(message.expiration_ms)
    _record(headers, death)
    if queue.dead_letter_routing_key is not None:
        headers.pop("CC", None)
    key = queue.dead_letter_routing_key or routing_key
    return replace(message, headers=headers, expiration_ms=None), key


def _record(headers: dict[str, Any], death: dict[str, Any]) -> None:
    deaths = headers.get(DEATHS)
    if not isinstance(deaths, list):
        for part in ("reason", "queue", "exchange"):
            headers[f"x-first-death-{part}"] = death[part]
        headers[DEATHS] = [death]
        return
    others = []
    for earlier in deaths:
        if not _same(earlier, death):
            others.append(earlier)
        elif isinstance(earlier.get("count"), int):
            death = earlier | {"count": earlier["count"] + 1}
    headers[DEATHS] = [death, *others]


def _same(earlier: Any, death: dict[str, Any]) -> bool:
    return (
        isinstance(earlier, dict)
        and earlier.get("queue") == death["queue"]
        and earlier.get("reason") == death["reason"]
    )


def is_cycle(headers: HeaderTable, target: str, reason: Reason) -> bool:
    """Tell whether a dead letter would come to a queue a second time without a reject in between.

    RabbitMQ drops such a message silently, also when a publisher copied `x-death` into it (3.10).
    """
    deaths = headers.get(DEATHS)
    if reason is Reason.REJECTED or not isinstance(deaths, list):
        return False
    for death in deaths:
        if not isinstance(death, dict) or death.get("reason") == Reason.REJECTED:
            return False
        if death.get("queue") == target:
            return True
    return False


TIMER_EARLY_SECONDS = 1e-6
"""The time by which a timer may fire too early, because clocks and sums are rounded."""
DEAD_LETTER_RETRY_SECONDS = 180.0
"""The interval at which an at-least-once queue retries to publish a dead letter that no queue takes."""
BEFORE_ALL = 2**62
"""The number subtracted from a returned message's place, to put the message before all others."""


@dataclass(slots=True, order=True)
class Stored:
    """A message in one queue; a lower `place` (a number) is nearer to the queue's head."""

    place: int
    message: Message = field(compare=False)
    exchange: str = field(compare=False)
    routing_key: str = field(compare=False)
    expires_at: float | None = field(compare=False, default=None)
    """The time at which the message expires, on the event loop's clock; None for never."""
    returns: int = field(compare=False, default=0)
    """The number of times that the message was delivered and returned."""
    gone: bool = field(compare=False, default=False)
    """Whether the message is settled for good, or its queue is deleted."""


@dataclass(slots=True, eq=False)
class QueueSubscription:
    """A consumer of one queue: its callbacks, its prefetch and its number of unsettled deliveries."""

    deliver: Callable[[Stored], None]
    canceled: Callable[[], None]
    """The callback for when the broker cancels the consumer."""
    prefetch: int
    exclusive: bool = False
    in_hand: int = 0


def _bytes(messages: Iterable[Stored]) -> int:
    return sum(len(stored.message.body) for stored in messages)


GiveUp = Callable[[Queue, Stored, Reason], bool]
"""A function that publishes a dead letter, and returns False when no queue took it."""


class MemoryQueue:
    """An in-memory queue that delivers messages in order to consumers, in turn or at random, up to their prefetch."""

    def __init__(
        self,
        declared: Queue,
        *,
        give_up: GiveUp,
        expire: Callable[[str], None],
        seeded: random.Random | None = None,
        context: Context | None = None,
    ) -> None:
        """Create an empty queue as declared; consumers are picked by the random source `seeded`, without it in turn.

        Timers run in the contextvars `context`; by default in a copy of the present one.
        """
        self.declared = declared
        self._bounded = declared.bounded
        self._most = inf if declared.max_length is None else declared.max_length
        self._most_bytes = inf if declared.max_length_bytes is None else declared.max_length_bytes
        self._give_up = give_up
        self._expire = expire
        self._seeded = seeded
        self._context = context or copy_context()
        self._ready: list[Stored] = []
        self._in_hand: dict[int, Stored] = {}
        self._retained: list[tuple[Stored, Reason]] = []
        self._places = itertools.count()
        self._subscriptions: deque[QueueSubscription] = deque()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._paused = False
        self.used()

    @property
    def stats(self) -> QueueStats:
        """The number of the queue's ready messages and of its consumers."""
        return QueueStats(messages=len(self._ready), consumers=len(self._subscriptions))

    @property
    def in_hand(self) -> int:
        """The number of the queue's messages that are delivered and not settled."""
        return len(self._in_hand)

    @property
    def total(self) -> int:
        """The number of the queue's messages: ready, delivered and not settled, or waiting to be dead-lettered."""
        return len(self._ready) + len(self._in_hand) + len(self._retained)

    @property
    def full(self) -> bool:
        """Tell whether the queue refuses the next message; RabbitMQ lets a burst go a little over the limit."""
        if self.declared.drops_oldest or not self._bounded:
            return False
        counted = self._ready
        if self.declared.type is QueueType.QUORUM:
            counted = [*self._ready, *self._in_hand.values()]
        return len(counted) >= self._most or _bytes(counted) >= self._most_bytes

    def put(self, message: Message, *, exchange: str, routing_key: str) -> bool:
        """Add a message; return False if a full queue refuses it; `drops_oldest` queues dead-letter their oldest."""
        if self.full:
            return False
        stored = Stored(next(self._places), message, exchange, routing_key, self._expiry(message))
        heapq.heappush(self._ready, stored)
        self._turn()
        if self._bounded and self.declared.drops_oldest:
            self._drop_oldest()
        return True

    def _drop_oldest(self) -> None:
        """Dead-letter the oldest ready messages over the limit; unsettled messages do not count."""
        while len(self._ready) > self._most or _bytes(self._ready) > self._most_bytes:
            self._dead_letter(heapq.heappop(self._ready), Reason.MAXLEN)

    def _expiry(self, message: Message) -> float | None:
        limits = [limit for limit in (self.declared.message_ttl_ms, message.expiration_ms) if limit is not None]
        return asyncio.get_running_loop().time() + min(limits) / 1000 if limits else None

    # Consumers

    def admits(self, *, exclusive: bool) -> bool:
        """Tell whether one more consumer may be added, with or without `exclusive` use of the queue."""
        return not any(exclusive or subscription.exclusive for subscription in self._subscriptions)

    def subscribe(self, subscription: QueueSubscription) -> None:
        """Add a consumer, and deliver ready messages to it."""
        self._subscriptions.append(subscription)
        self.used()
        self._turn()

    def unsubscribe(self, subscription: QueueSubscription) -> None:
        """Remove a consumer; its unsettled messages stay unsettled."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            self.used()

    def cancel_consumers(self) -> None:
        """Cancel all consumers of the queue, as the broker does when it deletes a queue."""
        subscriptions, self._subscriptions = self._subscriptions, deque()
        self.used()
        for subscription in subscriptions:
            subscription.canceled()

    def take(self) -> Stored | None:
        """Mark the first ready message as delivered and unsettled, and return it; None when there is none."""
        self.used()
        self._expire_heads()
        if not self._ready:
            return None
        stored = heapq.heappop(self._ready)
        self._in_hand[stored.place] = stored
        return stored

    # Settling

    def ack(self, stored: Stored, subscription: QueueSubscription | None) -> None:
        """Remove an unsettled message from the queue for good, since it is done."""
        if self._let_go(stored, subscription):
            stored.gone = True
            self._turn()

    def requeue(self, stored: Stored, subscription: QueueSubscription | None) -> None:
        """Put an unsettled message back into the queue, or dead-letter it when over a quorum queue's delivery limit."""
        if not self._let_go(stored, subscription):
            return
        stored.returns += 1
        limit = self.declared.delivery_limit if self.declared.type is QueueType.QUORUM else None
        if limit is not None and stored.returns > limit:
            self._dead_letter(stored, Reason.DELIVERY_LIMIT)
        else:
            if self.declared.type is QueueType.QUORUM:
                # behind earlier returns and before all other messages; without a delivery limit last (3.10)
                stored.place = next(self._places) - (BEFORE_ALL if limit is not None else 0)
            heapq.heappush(self._ready, stored)
        self._turn()

    def reject(self, stored: Stored, subscription: QueueSubscription | None) -> None:
        """Send an unsettled message to the queue's dead-letter exchange, or drop it if the queue has none."""
        if self._let_go(stored, subscription):
            self._dead_letter(stored, Reason.REJECTED)
            self._turn()

    def _let_go(self, stored: Stored, subscription: QueueSubscription | None) -> bool:
        if stored.gone or self._in_hand.pop(stored.place, None) is None:
            return False
        if subscription is not None:
            subscription.in_hand -= 1
        return True

    # What happens by itself

    def used(self) -> None:
        """Note that the queue was used: restart its `x-expires` timer, which runs while the queue has no consumer."""
        self._set_timer("expires", None)
        if self.declared.expires_ms is not None and not self._subscriptions and not self._paused:
            due = asyncio.get_running_loop().time() + self.declared.expires_ms / 1000
            self._set_timer("expires", due, lambda: self._expire(self.declared.name))

    def _turn(self) -> None:
        """Deliver ready messages to consumers with free prefetch, then dead-letter expired messages."""
        if self._paused:
            return
        while self._ready and (subscription := self._next_with_room()) is not None:
            self._expire_heads()
            if not self._ready:
                break
            stored = heapq.heappop(self._ready)
            self._in_hand[stored.place] = stored
            subscription.in_hand += 1
            subscription.deliver(stored)
        self._expire_heads()

    def _next_with_room(self) -> QueueSubscription | None:
        if self._seeded is not None and self._subscriptions:
            self._subscriptions.rotate(self._seeded.randrange(len(self._subscriptions)))
        for _ in range(len(self._subscriptions)):
            subscription = self._subscriptions[0]
            self._subscriptions.rotate(-1)
            if subscription.in_hand < subscription.prefetch:
                return subscription
        return None

    def _expire_heads(self) -> None:
        """Dead-letter expired messages at the head; later messages expire only once they are at the head."""
        now = asyncio.get_running_loop().time() + TIMER_EARLY_SECONDS
        while self._ready and (due := self._ready[0].expires_at) is not None and due <= now:
            self._dead_letter(heapq.heappop(self._ready), Reason.EXPIRED)
        self._set_timer("head", self._ready[0].expires_at if self._ready else None, self._turn)

    def _dead_letter(self, stored: Stored, reason: Reason) -> None:
        if self.declared.dead_letter_exchange is None or self._give_up(self.declared, stored, reason):
            stored.gone = True
        elif self.declared.arguments.get("x-dead-letter-strategy") == "at-least-once":
            self._retained.append((stored, reason))
            if "retained" not in self._timers:
                due = asyncio.get_running_loop().time() + DEAD_LETTER_RETRY_SECONDS
                self._set_timer("retained", due, self._retry_retained)
        else:
            stored.gone = True

    def _retry_retained(self) -> None:
        self._set_timer("retained", None)
        retained, self._retained = self._retained, []
        for stored, reason in retained:
            self._dead_letter(stored, reason)

    def _set_timer(self, name: str, due: float | None, call: Callable[[], None] | None = None) -> None:
        timer = self._timers.get(name)
        if timer is not None and timer.when() == due and not timer.cancelled():
            return
        if timer is not None:
            self._timers.pop(name).cancel()
        if due is not None and call is not None and not self._paused:
            self._timers[name] = asyncio.get_running_loop().call_at(due, self._ring, name, call, context=self._context)

    def _ring(self, name: str, call: Callable[[], None]) -> None:
        self._timers.pop(name, None)
        call()

    # The broker's own life

    def pause(self) -> None:
        """Stop deliveries and timers, because the broker is down or the queue's leader hangs."""
        self._paused = True
        for name in tuple(self._timers):
            self._set_timer(name, None)

    def resume(self) -> None:
        """Restart deliveries and timers after a pause; messages that expired meanwhile are dead-lettered."""
        self._paused = False
        self.used()
        if self._retained:
            self._retry_retained()
        self._turn()

    def close(self) -> None:
        """Delete the queue: drop its messages and cancel its consumers."""
        self.pause()
        for stored in itertools.chain(self._ready, self._in_hand.values()):
            stored.gone = True
        self._ready.clear()
        self._in_hand.clear()
        self._retained.clear()
        self.cancel_consumers()


class Hand:
    """The unsettled deliveries of one consumer, or of one process's fetches with `get`."""

    def __init__(self, path: NetworkPath) -> None:
        self.path = path
        """The simulated network path to the broker."""
        self._held: dict[MemoryDelivery, None] = {}
        self._settled: dict[MemoryDelivery, None] = {}
        """The settled deliveries whose settlement has not reached the broker yet."""

    @property
    def size(self) -> int:
        """The number of unsettled deliveries."""
        return len(self._held)

    @property
    def empty(self) -> bool:
        """Tell whether every delivery is settled, and the broker has received each settlement."""
        return not self._held and not self._settled

    def take(self, stored: Stored, queue: MemoryQueue, subscription: QueueSubscription | None) -> MemoryDelivery:
        """Add a message as a new unsettled delivery, and return the delivery."""
        delivery = MemoryDelivery(self, stored, queue, subscription)
        self._held[delivery] = None
        return delivery

    def settle(self, delivery: MemoryDelivery, tell: Callable[[], None]) -> None:
        """Settle a delivery, and call `tell` when the settlement reaches the broker; idempotent."""
        if delivery not in self._held:
            return
        del self._held[delivery]
        self._settled[delivery] = None
        self.path.carry(Way.TO_SERVER, lambda: self._settlement_arrived(delivery, tell))

    def _settlement_arrived(self, delivery: MemoryDelivery, tell: Callable[[], None]) -> None:
        if delivery in self._settled:
            del self._settled[delivery]
            tell()

    def lose(self) -> None:
        """Mark each delivery whose settlement has not reached the broker as lost, and requeue its message."""
        held, self._held, self._settled = {**self._held, **self._settled}, {}, {}
        for delivery in held:
            delivery.lost = True
        for delivery in held:
            delivery.give_back()


class MemoryDelivery:
    """The in-memory implementation of the interface `Delivery`."""

    def __init__(self, hand: Hand, stored: Stored, queue: MemoryQueue, subscription: QueueSubscription | None) -> None:
        self._hand = hand
        self._stored = stored
        self._queue = queue
        self._subscription = subscription
        self.queue = queue.declared.name
        """The name of the queue that delivered the message."""
        self.exchange, self.routing_key = stored.exchange, stored.routing_key
        """The exchange and the routing key with which the message was last published or dead-lettered."""
        self.redelivered = stored.returns > 0
        """Whether the broker delivered the message before."""
        self.delivery_count = stored.returns if queue.declared.type is QueueType.QUORUM else 0
        """The number of the message's returns to its quorum queue; 0 for a classic queue, which does not count."""
        self.lost = False
        self.message = stored.message
        if self.delivery_count:
            headers = {**stored.message.headers, "x-delivery-count": self.delivery_count}
            self.message = replace(stored.message, headers=headers)

    def ack(self) -> None:
        """Ack the delivery as done; without effect when it is settled already."""
        self._hand.settle(self, lambda: self._queue.ack(self._stored, self._subscription))

    def requeue(self) -> None:
        """Put the message back into its queue; without effect when the delivery is settled already."""
        self._hand.settle(self, lambda: self._queue.requeue(self._stored, self._subscription))

    def reject(self) -> None:
        """Send the message to the queue's dead-letter exchange, or drop it without one; no effect when settled."""
        self._hand.settle(self, lambda: self._queue.reject(self._stored, self._subscription))

    def give_back(self) -> None:
        """Put the message back into its queue, because the connection was lost or the process released it."""
        self._queue.requeue(self._stored, self._subscription)
