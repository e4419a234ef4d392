"""What the rest of Coditect asks of a broker. Two adapters: `amqp` (RabbitMQ) and `memory` (its twin).

A publish is done when the broker confirmed it. A delivery is settled exactly once: `ack`, `requeue` or
`reject`; settling never blocks and never raises. When the connection is lost, unsettled deliveries become
`lost`: the broker gives them to someone again, settling them does nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from coditect.broker.topology import Topology
from coditect.model.message import Message


class Delivery(Protocol):
    """A message in hand."""

    @property
    def message(self) -> Message:
        """What was published."""

    @property
    def queue(self) -> str:
        """The queue it came from."""

    @property
    def exchange(self) -> str:
        """The exchange it was last published or dead-lettered to."""

    @property
    def routing_key(self) -> str:
        """The key it was last published with."""

    @property
    def redelivered(self) -> bool:
        """Whether the broker gave it to someone before."""

    @property
    def delivery_count(self) -> int:
        """How often it came back to its quorum queue; hand-backs count. 0 when the broker does not say."""

    @property
    def lost(self) -> bool:
        """Whether its channel is gone: it is not ours to settle any more."""

    def ack(self) -> None:
        """It is done with. May leave together with other acks of the same loop turn."""

    def requeue(self) -> None:
        """It goes back unstarted, for anybody."""

    def reject(self) -> None:
        """It goes to the queue's dead-letter exchange."""


class Promise(Protocol):
    """Who is told what became of something, once. A future is one."""

    def done(self) -> bool:
        """Whether it was told, or does not want to know any more."""

    def set_result(self, result: None) -> None:
        """It went well."""

    def set_exception(self, exception: BaseException) -> None:
        """It came to nothing."""


OnDelivery = Callable[[Delivery], None]
"""Called on the event loop for each delivery; must not block and must not raise."""


class Consumer(Protocol):
    """A subscription to one queue, kept over reconnects until it is canceled."""

    @property
    def queue(self) -> str:
        """The queue it consumes."""

    @property
    def prefetch(self) -> int:
        """How many of its deliveries may be unsettled at once."""

    @property
    def active(self) -> bool:
        """Whether the broker knows it right now."""

    @property
    def unsettled(self) -> int:
        """How many of its deliveries are in hand."""

    async def cancel(self) -> None:
        """Ends it: no delivery after the return. What it delivered stays ours to settle. Idempotent."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue as the broker sees it."""

    messages: int
    """Ready, not in anybody's hand."""
    consumers: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The broker that answered."""

    product: str
    version: tuple[int, ...]
    """For example (3, 10, 8)."""


def connection_names(process: str) -> tuple[str, str]:
    """What a process of this name calls its two connections at the broker: by them it can be evicted."""
    return f"{process} publishes", f"{process} consumes"


class Broker(Protocol):
    """A connection to the broker; an async context manager. Reconnects by itself until it is closed."""

    @property
    def server(self) -> ServerInfo:
        """Who answered last."""

    @property
    def connected(self) -> bool:
        """Whether both connections stand and every consumer is active."""

    @property
    def answering(self) -> bool:
        """False while the connection that consumes stands, and was silent for two seconds although it was asked."""

    @property
    def blocked(self) -> bool:
        """Whether the broker has told us to stop publishing (an alarm)."""

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        """Makes the entities exist; idempotent. They are declared again after a broker lost them, bindings every few
        seconds.

        A queue that is `once` is not: its absence tells. With `lazily` it is made when something of it turns out to be
        missing: for what others made long ago.

        Raises: TopologyMismatch when one exists with other arguments; BrokerUnavailable.
        """

    def on_return(self, check: Callable[[], Awaitable[None]]) -> None:
        """Has this called whenever a lost connection stands again, before anything is published over it.

        Publishing waits for it; raising a CoditectError counts as a loss of the connection.
        """

    def publish(
        self,
        message: Message,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> Awaitable[None]:
        """Done when the broker has taken the message; at least once, the same `message_id` if repeated.

        What is sent again although the broker may have taken it carries `wire.SENT_AGAIN`.

        Waits, within the time, for a lost connection, an alarm, a full queue (unless `wait_when_full` is
        False), the confirm window, and for 15 s at most for an exchange that this process declared and for the owner
        of a queue that is there and not bound. Order between concurrent calls is not promised.

        Raises: Unroutable (nothing was taken); Overloaded (nothing was taken, retryable);
        PublishUnconfirmed (unknown, retryable); BrokerUnavailable (nothing was sent, retryable); TooLarge
        (over the broker's own limit, far above ours; nothing was taken); NotFound (there is no such exchange).
        """

    def post(
        self,
        message: Message,
        promise: Promise,
        *,
        exchange: str,
        routing_key: str,
        timeout_seconds: float = 30.0,
        wait_when_full: bool = True,
    ) -> None:
        """`publish` for whoever has no coroutine that waits: the promise is told what became of it.

        On the event loop, and perhaps before the return.
        """

    async def consume(
        self,
        queue: str,
        on_delivery: OnDelivery,
        *,
        prefetch: int,
        group: str = "",
        on_lost: Callable[[], None] | None = None,
        exclusive: bool = False,
    ) -> Consumer:
        """Delivers the queue's messages to the callback, at most `prefetch` unsettled at once.

        Consumers of one `group` share a channel. `on_lost` is called when the broker knows this
        consumer no more (it is subscribed again by itself): with its channel all its deliveries became lost; when
        it alone was ended, or was found deaf, they stay ours.

        Raises: NotFound when there is no such queue; BrokerUnavailable.
        """

    async def get(self, queue: str) -> Delivery | None:
        """One message, to look at; None when the queue is empty. Unsettled it goes back when `release` is called.

        Raises: NotFound when there is no such queue; BrokerUnavailable.
        """

    async def release(self) -> None:
        """Gives back everything that `get` brought and nobody settled."""

    async def stats(self, queue: str) -> QueueStats | None:
        """How full the queue is; None when it does not exist.

        Raises: BrokerUnavailable.
        """

    async def delete_queue(self, queue: str, *, if_empty: bool = False, classic: bool = False) -> None:
        """Removes the queue; idempotent. With `if_empty` one that holds messages stays.

        Of a `classic` queue that is certain; what comes to another in that very moment is lost with it.
        """
