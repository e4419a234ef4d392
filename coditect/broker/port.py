"""The interface of the message broker (its port), with two adapters: `rabbitmq` and its in-memory twin `memory`.

A publish is done when the broker has confirmed it. A delivery is settled exactly once: `ack`, `requeue` or `reject`;
settling never blocks and never raises. When the connection is lost, unsettled deliveries become `lost`: the broker
delivers them again, and settling them does nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coditect.broker.topology import Binding, Topology
from coditect.errors import Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import routing


class Delivery(Protocol):
    """A delivered message with its origin, to be settled once by ack, requeue or reject."""

    @property
    def message(self) -> Message:
        """The message that the broker delivered."""

    @property
    def queue(self) -> str:
        """The name of the queue that delivered the message."""

    @property
    def exchange(self) -> str:
        """The exchange to which the message was last published or dead-lettered."""

    @property
    def routing_key(self) -> str:
        """The routing key with which the message was last published or dead-lettered."""

    @property
    def redelivered(self) -> bool:
        """Tell whether the broker delivered the message before."""

    @property
    def delivery_count(self) -> int:
        """The number of the message's returns to its quorum queue; 0 when the broker does not report it."""

    @property
    def lost(self) -> bool:
        """Tell whether the delivery's channel is gone, so that the process can no longer settle the delivery."""

    def ack(self) -> None:
        """Ack the delivery as done; acks made in one turn of the event loop may be sent in one frame."""

    def requeue(self) -> None:
        """Put the message back into its queue unprocessed, for any consumer."""

    def reject(self) -> None:
        """Reject the message: it goes to the queue's dead-letter exchange, or is dropped if the queue has none."""


class Promise(Protocol):
    """The interface of an object on which one publish's outcome is set, success or error, such as a future."""

    def done(self) -> bool:
        """Tell whether the publish's outcome is set already, or no longer wanted."""

    def set_result(self, result: None) -> None:
        """Set the publish's outcome to success: the broker has the message."""

    def set_exception(self, exception: BaseException) -> None:
        """Set the publish's outcome to the error with which the publish failed."""


ASTRAY_SECONDS = 15.0
"""The longest time that a publish waits for the process that owns a missing binding to declare it again."""
ASTRAY_PAUSE_SECONDS = 0.25

OnDelivery = Callable[[Delivery], None]
"""The callback for each delivery, called on the event loop; it must not block and must not raise."""


class Consumer(Protocol):
    """A subscription to one queue, restored after reconnects until it is canceled."""

    @property
    def queue(self) -> str:
        """The name of the consumed queue."""

    @property
    def prefetch(self) -> int:
        """The number of the consumer's deliveries that may be unsettled at once."""

    @property
    def active(self) -> bool:
        """Tell whether the consumer is registered at the broker right now."""

    @property
    def unsettled(self) -> int:
        """The number of the consumer's deliveries that are not settled yet."""

    async def cancel(self) -> None:
        """Cancel the consumer: no delivery comes after the return, earlier ones can still be settled; idempotent."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue's number of ready messages and number of consumers."""

    messages: int
    """The number of ready messages, without those that are delivered and unsettled."""
    consumers: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The product and version of the broker, and when its TLS certificate expires."""

    product: str
    version: tuple[int, ...]
    """The version of the broker as numbers, for example (3, 10, 8)."""
    certificate_end: float | None = None
    """When the broker's TLS certificate expires, as a Unix time; None without TLS, or when it was not verified."""


class ProbeVerdict(StrEnum):
    """The result of comparing the broker's exchange or queue with the wanted one."""

    SAME = "same"
    MISSING = "missing"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Probe:
    """The broker's answer about one exchange or queue, with the broker's error text when the arguments differ."""

    verdict: ProbeVerdict
    text: str = ""


SAME = Probe(ProbeVerdict.SAME)
MISSING = Probe(ProbeVerdict.MISSING)


def connection_names(process: str) -> tuple[str, str]:
    """Return the names of the two connections of a process to the broker: one that publishes, one that consumes.

    To evict the process is to close both.
    """
    return f"{process} publishes", f"{process} consumes"


class Broker(Protocol):
    """The interface of a process's connection to the broker, an async context manager that reconnects by itself."""

    @property
    def server(self) -> ServerInfo:
        """The product, version and TLS certificate's expiry of the broker that answered last."""

    @property
    def connected(self) -> bool:
        """Tell whether both connections are open, the broker answers on them, and every consumer is active.

        A queue on a dead node of a cluster does not count: its consumer waits for the node.
        """

    @property
    def answering(self) -> bool:
        """Tell whether the broker answers; False while an open consuming connection has had no answer for about 2 s."""

    @property
    def blocked(self) -> bool:
        """Tell whether the broker holds up this process's publishes, as by an alarm; False until one is tried."""

    async def declare(self, topology: Topology, *, lazily: bool = False) -> None:
        """Declare exchanges, queues and bindings now and after each reconnect; if `lazily`, only when some are missing.

        Idempotent. Bindings are declared again every few seconds, too. A queue that is `once` is not declared again:
        its absence shows the loss. `lazily` is for entities that other processes declared long ago.

        Raises:
            TopologyMismatch: when an entity exists with other arguments.
            NotFound: when the exchange or queue of a binding is missing.
            BrokerUnavailable: when the broker does not answer; retryable.
        """

    def on_reconnect(self, check: Callable[[], Awaitable[None]]) -> None:
        """Set the function, in place of an earlier one, that runs on each new connection before publishes go over it.

        Publishing waits for the function; a CoditectError from it counts as a loss of the connection.
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
        """Publish a message at least once; the awaitable ends when the broker has confirmed the message.

        A repetition has the same `message_id`, and carries `wire.SENT_AGAIN` when the broker may have the message.
        Waits, within the time, for a lost connection, an alarm, a full queue (unless `wait_when_full` is False), the
        confirm window, and for 15 s at most for an exchange that this process declared and for the owner of a queue
        that exists and is not bound. The order of concurrent calls is not kept.

        Raises:
            Unroutable: when no queue takes the message; nothing was taken.
            Overloaded: when the broker takes no more messages; retryable.
            PublishUnconfirmed: when the outcome is unknown; retryable.
            BrokerUnavailable: when the broker does not answer; nothing was sent, retryable.
            TooLarge: when the body is over the broker's own limit, far above Coditect's; nothing was taken.
            NotFound: when there is no such exchange.
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
        """Publish a message at least once without a coroutine; `promise`, such as a future, gets success or error.

        The outcome is set on the event loop, and perhaps before the return.
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
        """Consume a queue: each delivery goes to the callback, with at most `prefetch` unsettled at once.

        Consumers of one `group` share a channel. `on_lost` is called when the broker has lost this consumer (which is
        subscribed again by itself): with its channel all its deliveries became lost; when it alone was ended, or
        received nothing, they can still be settled.

        Raises:
            NotFound: when there is no such queue.
            BrokerUnavailable: when the broker does not answer; retryable.
        """

    async def get(self, queue: str) -> Delivery | None:
        """Take one message from a queue, until it is settled or `release` puts it back; return None for an empty queue.

        Raises:
            NotFound: when there is no such queue.
            BrokerUnavailable: when the broker does not answer; retryable.
        """

    async def release(self) -> None:
        """Put all unsettled messages that `get` fetched back into their queues."""

    async def stats(self, queue: str) -> QueueStats | None:
        """Return a queue's number of ready messages and number of consumers; None when the queue does not exist.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """

    async def unbind(self, binding: Binding) -> None:
        """Remove a binding of a queue to an exchange, and do not declare it again after a reconnect; idempotent.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """

    async def delete_queue(self, queue: str, *, if_empty: bool = False, classic: bool = False) -> None:
        """Delete a queue with its messages; idempotent. With `if_empty`, keep a queue that has ready messages.

        `if_empty` is certain only for a `classic` queue: what reaches another queue at that moment is lost, and so is
        what waits in it to be dead-lettered.
        """


async def tell(broker: Broker, message: Message, *, agent_id: AgentId | None = None, within_seconds: float) -> bool:
    """Send a message to every agent and dispatcher, or to one agent, at most once; return whether any is there.

    Raises:
        BrokerUnavailable: when the broker does not answer in time; retryable.
    """
    exchange, key = (routing.BROADCAST, "") if agent_id is None else (routing.AGENTS, routing.mailbox_key(agent_id))
    try:
        await broker.publish(message, exchange=exchange, routing_key=key, timeout_seconds=within_seconds)
    except Unroutable:
        return False
    return True
