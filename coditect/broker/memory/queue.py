"""An in-memory queue: its ready messages, its consumers, and its dead letters."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from math import inf

from coditect.broker.memory.dead_letter import Reason
from coditect.broker.port import QueueStats
from coditect.broker.topology import Queue, QueueType
from coditect.model.message import Message

EARLY_SECONDS = 1e-6
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
    return sum(len(one.message.body) for one in messages)


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
    def retained(self) -> int:
        """The number of the queue's messages that wait to be dead-lettered."""
        return len(self._retained)

    @property
    def full(self) -> bool:
        """Tell whether the queue refuses the next message; RabbitMQ lets a burst go a little over the limit."""
        if self.declared.drops_oldest or not self.declared.bounded:
            return False
        counted = self._ready
        if self.declared.type is QueueType.QUORUM:
            counted = [*self._ready, *self._in_hand.values()]
        return len(counted) >= self._most or _bytes(counted) >= self._most_bytes

    @property
    def _most(self) -> float:
        return inf if self.declared.max_length is None else self.declared.max_length

    @property
    def _most_bytes(self) -> float:
        return inf if self.declared.max_length_bytes is None else self.declared.max_length_bytes

    def put(self, message: Message, *, exchange: str, routing_key: str) -> bool:
        """Add a message; return False if a full queue refuses it; `drops_oldest` queues dead-letter their oldest."""
        if self.full:
            return False
        stored = Stored(next(self._places), message, exchange, routing_key, self._expiry(message))
        heapq.heappush(self._ready, stored)
        self._turn()
        if self.declared.drops_oldest and self.declared.bounded:
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
        return not any(exclusive or one.exclusive for one in self._subscriptions)

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
            self._come_back(stored, in_front=limit is not None)
        self._turn()

    def _come_back(self, stored: Stored, *, in_front: bool) -> None:
        """Insert a returned message: in a classic queue at its old place, in a quorum queue near the front or last.

        In a quorum queue the place is behind earlier returns and before all other messages; without a delivery limit,
        it is the end (3.10).
        """
        if self.declared.type is QueueType.QUORUM:
            stored.place = next(self._places) - (BEFORE_ALL if in_front else 0)
        heapq.heappush(self._ready, stored)

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
        now = asyncio.get_running_loop().time() + EARLY_SECONDS
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
