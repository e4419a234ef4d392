"""Every exchange, queue and binding that Coditect declares, with their arguments, as values.

::

    coditect.submit     topic      <capability>.<p0|p1|p2>   tasks.<capability>.<level>   own: unroutable returns
    coditect.tasks      topic, AE  the same                  the same                     for other programs
    coditect.agents     direct     <agent>, mail.<agent>     agent.<agent>.tasks, agent.<agent>.mail
                                   next.<agent>              agent.<agent>.next
    coditect.replies    direct     <reply queue>             reply.<process>
    coditect.events     topic      task.completed, ...       any queue that is bound
    coditect.broadcast  fanout     -                         every agent's mailbox
    coditect.retry.after.<ms>
                        fanout     the task's key            retry.after.<ms> -> coditect.retry.back
    coditect.retry.back topic, AE  the task's key            retry.back.<capability> -> coditect.tasks
    coditect.dead       topic      the task's key            dead.<capability>, dead.notices
    coditect.unrouted   fanout     -                         unrouted, unrouted.notices
    coditect.results    direct     <shard>                   results.<shard>
    coditect.control    direct     <shard>, any              control.<shard>, control
    -                   -          -                         coditect.epoch.<uuid>, see `marker_queue`

Task, retry and dead queues are quorum queues. `x-delivery-limit` is a backstop and always explicit: on
RabbitMQ 3.10 an absent limit means for ever, on 4.x it means 20, and -1 drops messages on 3.10. Attempts are counted
in a header of Coditect's. Dead-lettering is at-least-once, which needs `reject-publish`. No `x-max-priority`
(refused by quorum queues on 3.10), no transient queues (refused by 4.3).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum

from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.wire import routing

TASK_DELIVERY_LIMIT = 1_000
"""The delivery limit of task queues, high enough for agents that return unstarted tasks when they drain."""
DEAD_DELIVERY_LIMIT = 1_000_000
"""The delivery limit of dead-letter queues, high because each look at a dead letter is a delivery."""
REPLY_EXPIRES_MS = 600_000
MAILBOX_EXPIRES_MS = 60_000
INBOX_TTL_MS = 1_000
INBOX_EXPIRES_MS = 3_600_000
"""The time after which the broker deletes an unused inbox of an agent, with the messages in it."""
INBOX_LOOK_SECONDS = INBOX_EXPIRES_MS / 4_000
"""How often a client that pins tasks to an agent looks at the agent's inbox, which keeps it from expiring."""
BACK_TTL_MS = 1
NOTICES_MS = 3_600_000
"""The time for which a notice waits for a dispatcher, and a queue of notices without a consumer exists."""
MOST_WEBHOOK_EVENTS = 10_000
MOST_TRIGGER_EVENTS = 100_000
MOST_NOTICES = 10_000
MOST_NOTICE_BYTES = 64 * 1024 * 1024

_SHARES = {Priority.P1: 2, Priority.P2: 1}
"""How many times `max_queued` tasks of a priority level may wait; P0 has no bound."""

Argument = str | int


class ExchangeType(StrEnum):
    """The type of an exchange, by which it routes messages to queues."""

    DIRECT = "direct"
    TOPIC = "topic"
    FANOUT = "fanout"


class QueueType(StrEnum):
    """The type of a queue, by which it stores messages."""

    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange, with its type and its alternate exchange."""

    name: str
    type: ExchangeType
    alternate: str | None = None

    @property
    def arguments(self) -> dict[str, Argument]:
        """The arguments of the exchange's AMQP declaration: its alternate exchange, if it has one."""
        return {"alternate-exchange": self.alternate} if self.alternate else {}


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue, with its type, limits and dead-letter exchange."""

    name: str
    type: QueueType = QueueType.QUORUM
    delivery_limit: int | None = None
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    message_ttl_ms: int | None = None
    expires_ms: int | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    drops_oldest: bool = False
    """Whether a full queue drops its oldest messages instead of refusing new ones; only for copies."""
    once: bool = False
    """Whether the queue is never declared again after the broker lost it, because its absence shows the loss."""

    @property
    def arguments(self) -> dict[str, Argument]:
        """The arguments of the queue's AMQP declaration, such as type, limits and dead-letter exchange."""
        quorum = self.type is QueueType.QUORUM
        safe_dead_letters = quorum and self.dead_letter_exchange is not None
        overflow = "drop-head" if self.drops_oldest else "reject-publish"
        wanted: dict[str, Argument | None] = {
            "x-queue-type": self.type.value,
            "x-delivery-limit": self.delivery_limit if quorum else None,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": self.dead_letter_routing_key,
            "x-dead-letter-strategy": "at-least-once" if safe_dead_letters else None,
            "x-overflow": overflow if safe_dead_letters or self.bounded else None,
            "x-message-ttl": self.message_ttl_ms,
            "x-expires": self.expires_ms,
            "x-max-length": self.max_length,
            "x-max-length-bytes": self.max_length_bytes,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def bounded(self) -> bool:
        """Tell whether the queue has a limit of messages or bytes, so that it can be full."""
        return self.max_length is not None or self.max_length_bytes is not None


@dataclass(frozen=True, slots=True)
class Binding:
    """A rule that messages with a routing key go from an exchange to a queue."""

    exchange: str
    queue: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """A set of exchanges, queues and bindings, in the order in which they must be declared."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def __add__(self, other: Topology) -> Topology:
        return Topology(
            tuple(dict.fromkeys(self.exchanges + other.exchanges)),
            tuple(dict.fromkeys(self.queues + other.queues)),
            tuple(dict.fromkeys(self.bindings + other.bindings)),
        )

    @property
    def lasting(self) -> Topology:
        """The topology without queues marked `once`: they are not redeclared, so that their absence shows a loss."""
        if not any(queue.once for queue in self.queues):
            return self
        return replace(self, queues=tuple(queue for queue in self.queues if not queue.once))

    @property
    def replicated(self) -> Topology:
        """The topology with a quorum queue in place of each classic one, which would be gone with its node."""
        return replace(self, queues=tuple(map(_replicated, self.queues)))

    def only_queue(self, name: str) -> Topology:
        """Return the topology of only the named queue and its bindings."""
        return Topology(
            (),
            tuple(queue for queue in self.queues if queue.name == name),
            tuple(binding for binding in self.bindings if binding.queue == name),
        )

    def has(self, name: str) -> bool:
        """Tell whether the topology has an exchange or a queue of this name."""
        return self.has_exchange(name) or any(queue.name == name for queue in self.queues)

    def has_exchange(self, name: str) -> bool:
        """Tell whether the topology has an exchange of this name."""
        return any(exchange.name == name for exchange in self.exchanges)

    def binds(self, exchange: str, key: str) -> bool:
        """Tell whether the topology has a binding of the exchange with the given routing key, or with an empty key."""
        return any(binding.exchange == exchange and binding.key in ("", key) for binding in self.bindings)

    def mentions(self, name: str) -> bool:
        """Tell whether an exchange, a queue or an end of a binding has this name."""
        return self.has(name) or any(name in (binding.exchange, binding.queue) for binding in self.bindings)

    def without(self, names: Collection[str]) -> Topology:
        """Return a new topology, which lacks the named exchanges and queues, and their bindings."""
        return Topology(
            tuple(exchange for exchange in self.exchanges if exchange.name not in names),
            tuple(queue for queue in self.queues if queue.name not in names),
            tuple(binding for binding in self.bindings if binding.exchange not in names and binding.queue not in names),
        )

    def without_binding(self, binding: Binding) -> Topology:
        """Return a new topology, which lacks the given binding."""
        return replace(self, bindings=tuple(kept for kept in self.bindings if kept != binding))


def _replicated(queue: Queue) -> Queue:
    return replace(queue, type=QueueType.QUORUM, delivery_limit=queue.delivery_limit or TASK_DELIVERY_LIMIT)


def base_topology() -> Topology:
    """Return the exchanges, shared queues and bindings that every process needs."""
    exchanges = (
        Exchange(routing.UNROUTED, ExchangeType.FANOUT),
        Exchange(routing.DEAD, ExchangeType.TOPIC),
        Exchange(routing.SUBMIT, ExchangeType.TOPIC),
        Exchange(routing.TASKS, ExchangeType.TOPIC, alternate=routing.UNROUTED),
        Exchange(routing.AGENTS, ExchangeType.DIRECT),
        Exchange(routing.REPLIES, ExchangeType.DIRECT),
        Exchange(routing.EVENTS, ExchangeType.TOPIC),
        Exchange(routing.BROADCAST, ExchangeType.FANOUT),
        Exchange(routing.RESULTS, ExchangeType.DIRECT),
        Exchange(routing.CONTROL, ExchangeType.DIRECT),
    )
    unrouted = Queue(routing.UNROUTED_QUEUE, delivery_limit=DEAD_DELIVERY_LIMIT)
    return Topology(exchanges, (unrouted,), (Binding(routing.UNROUTED, unrouted.name),)) + _retry_delay_queues()


def _retry_delay_queues() -> Topology:
    """Return the retry-delay queues, which all capabilities share, with their exchanges.

    RabbitMQ hands over only a few dozen dead letters of a queue at once, and waits while their target refuses them. So
    a retry-delay queue leads to a queue of the capability, which is never full; there a task waits, and holds up only
    tasks of its capability. The tasks of a capability whose agents declare no such queue go to its task queue at once.
    """
    topology = Topology((Exchange(routing.RETRY_BACK, ExchangeType.TOPIC, alternate=routing.TASKS),))
    for delay_ms in RETRY_DELAYS_MS:
        exchange = Exchange(routing.retry_exchange(delay_ms), ExchangeType.FANOUT)
        queue = Queue(
            routing.retry_queue(delay_ms),
            delivery_limit=TASK_DELIVERY_LIMIT,
            dead_letter_exchange=routing.RETRY_BACK,
            message_ttl_ms=delay_ms,
        )
        topology += Topology((exchange,), (queue,), (Binding(exchange.name, queue.name),))
    return topology


def capability_queues(capability: str, *, max_queued: int | None = None) -> Topology:
    """Return a capability's queues: for dead letters, for tasks whose retry delay has passed, and for each priority.

    From `max_queued` waiting tasks on, the queue of P2 refuses more; that of P1 at twice as many; that of P0 never.
    """
    dead = Queue(routing.dead_queue(capability), delivery_limit=DEAD_DELIVERY_LIMIT)
    back = Queue(
        routing.retry_back_queue(capability),
        delivery_limit=TASK_DELIVERY_LIMIT,
        dead_letter_exchange=routing.TASKS,
        message_ttl_ms=BACK_TTL_MS,
    )
    queues = [dead, back]
    keys = [routing.task_key(capability, level) for level in Priority]
    bindings = [Binding(routing.DEAD, dead.name, key) for key in (*keys, capability)]
    bindings += [Binding(routing.RETRY_BACK, back.name, key) for key in keys]
    for level in Priority:
        queue = Queue(
            routing.task_queue(capability, level),
            delivery_limit=TASK_DELIVERY_LIMIT,
            dead_letter_exchange=routing.DEAD,
            max_length=None if max_queued is None or level is Priority.P0 else max_queued * _SHARES[level],
        )
        queues.append(queue)
        for exchange in (routing.SUBMIT, routing.TASKS):
            bindings.append(Binding(exchange, queue.name, routing.task_key(capability, level)))
            if level is Priority.P1:
                bindings.append(Binding(exchange, queue.name, capability))
    return Topology((), tuple(queues), tuple(bindings))


def agent_queues(agent_id: AgentId, *, slots: int) -> Topology:
    """Return one agent's queues: for pinned tasks (inbox), follow-up tasks (next), and control messages (mailbox).

    Inbox and next queue hand messages on to the task queues after 1 s. Follow-up tasks come from the ledger, which
    repeats lost ones: a classic queue hands them over at once.
    """
    inbox = Queue(
        routing.inbox_queue(agent_id),
        delivery_limit=TASK_DELIVERY_LIMIT,
        dead_letter_exchange=routing.TASKS,
        message_ttl_ms=INBOX_TTL_MS,
        expires_ms=INBOX_EXPIRES_MS,
        max_length=2 * slots,
    )
    following = replace(inbox, name=routing.next_queue(agent_id), type=QueueType.CLASSIC)
    mailbox = Queue(routing.mailbox_queue(agent_id), QueueType.CLASSIC, expires_ms=MAILBOX_EXPIRES_MS)
    return Topology(
        (),
        (inbox, following, mailbox),
        (
            inbox_binding(agent_id),
            Binding(routing.AGENTS, following.name, routing.next_key(agent_id)),
            Binding(routing.AGENTS, mailbox.name, routing.mailbox_key(agent_id)),
            Binding(routing.BROADCAST, mailbox.name),
        ),
    )


def inbox_binding(agent_id: AgentId) -> Binding:
    """Return the binding by which an agent's inbox gets the tasks that are pinned to the agent."""
    return Binding(routing.AGENTS, routing.inbox_queue(agent_id), agent_id)


def reply_queue(name: str) -> Topology:
    """Return one process's reply queue, which survives broker restarts and expires 10 min after its last use."""
    return _bound(Queue(name, QueueType.CLASSIC, expires_ms=REPLY_EXPIRES_MS), routing.REPLIES, name)


def event_queue(name: str, patterns: tuple[str, ...]) -> Topology:
    """Return one subscriber's queue of events that match topic patterns; a full queue drops its oldest events.

    A refusal of the newest event would nack the publish, and a repetition would reach the other subscribers twice.
    """
    queue = Queue(name, QueueType.CLASSIC, expires_ms=MAILBOX_EXPIRES_MS, max_length=10_000, drops_oldest=True)
    return _bound(queue, routing.EVENTS, *patterns)


def trigger_queue(name: str, pattern: str) -> Topology:
    """Return the queue of the events that a trigger waits for, which outlives every dispatcher.

    Publishers of events are never refused: of more than a hundred thousand events the oldest go to `unrouted`, as those
    do that no consumer can read.
    """
    queue = replace(
        _dispatchers_queue(name),
        dead_letter_exchange=routing.UNROUTED,
        dead_letter_routing_key=name,
        max_length=MOST_TRIGGER_EVENTS,
        drops_oldest=True,
    )
    return _bound(queue, routing.EVENTS, pattern)


def webhook_queue(name: str, patterns: tuple[str, ...]) -> Topology:
    """Return the queue of the events that a webhook waits for, which outlives every API process.

    Publishers of events are never refused: of more than ten thousand events the oldest are dropped.
    """
    queue = Queue(name, QueueType.CLASSIC, max_length=MOST_WEBHOOK_EVENTS, drops_oldest=True)
    return _bound(queue, routing.EVENTS, *patterns)


def notices() -> Topology:
    """Return the dispatchers' queues of notices: copies of dead letters and of unroutable messages.

    The queues hold only copies, so they are bounded whether a dispatcher runs or not: the oldest copies go first, each
    expires after an hour, and so does a queue without a dispatcher. The queues never refuse a message: a refusal would
    reach the publisher of the original, and hold up dead-lettering.
    """
    queues = tuple(
        Queue(
            name,
            delivery_limit=DEAD_DELIVERY_LIMIT,
            message_ttl_ms=NOTICES_MS,
            expires_ms=NOTICES_MS,
            max_length=MOST_NOTICES,
            max_length_bytes=MOST_NOTICE_BYTES,
            drops_oldest=True,
        )
        for name in (routing.UNROUTED_NOTICES, routing.DEAD_NOTICES)
    )
    return Topology(
        (),
        queues,
        (
            Binding(routing.UNROUTED, routing.UNROUTED_NOTICES),
            Binding(routing.DEAD, routing.DEAD_NOTICES, "#"),
        ),
    )


def control_plane() -> Topology:
    """Return the control plane's shared queue, of requests that any dispatcher may answer."""
    return _requests_queue(routing.CONTROL_QUEUE, "any")


def shard_queues(shard: int) -> Topology:
    """Return a shard's two queues: results from agents, and requests about the shard's workflows."""
    return _results_queue(shard) + _requests_queue(routing.control_queue(shard), str(shard))


def marker_queue(name: str) -> Topology:
    """Return an empty queue whose absence shows that the broker has lost its data."""
    return Topology((), (Queue(name, delivery_limit=DEAD_DELIVERY_LIMIT, once=True),))


def _results_queue(shard: int) -> Topology:
    """Return a shard's queue of results, whose dead letters carry the queue's name as routing key.

    The queue is a hop of every node: a classic queue hands a message on at once where a quorum queue first writes it to
    the disk, and confirms it when it is on the disk or acked, which the consumer does when the ledger has it.
    """
    name = routing.results_queue(shard)
    queue = replace(_dispatchers_queue(name), dead_letter_exchange=routing.UNROUTED, dead_letter_routing_key=name)
    return _bound(queue, routing.RESULTS, str(shard))


def _requests_queue(name: str, key: str) -> Topology:
    """Return a queue of clients' requests, without dead letters, since clients repeat their requests."""
    return _bound(_dispatchers_queue(name), routing.CONTROL, key)


def _bound(queue: Queue, exchange: str, *keys: str) -> Topology:
    return Topology((), (queue,), tuple(Binding(exchange, queue.name, key) for key in keys))


def _dispatchers_queue(name: str) -> Queue:
    return Queue(name, QueueType.CLASSIC, delivery_limit=DEAD_DELIVERY_LIMIT)


def topology_by_declarer(*, slots: int, shard: int) -> dict[str, Topology]:
    """Return everything that Coditect declares by the process that declares it, with placeholders for its names."""
    return {
        "every process": base_topology(),
        "an agent, for each capability": capability_queues("<capability>"),
        "an agent process": agent_queues(AgentId("<agent>"), slots=slots),
        "a process that asks": reply_queue("reply.<process>"),
        "a listener": event_queue("events.<process>.<n>", ("<pattern>",)),
        "a dispatcher": notices() + control_plane(),
        "a dispatcher, for each of its shards": shard_queues(shard),
        "a dispatcher, for each trigger": trigger_queue("trigger.<name>", "<pattern>"),
        "an API, for each webhook": webhook_queue("webhook.<name>.<salt>", ("<pattern>",)),
        "a dispatcher, once for each life of the broker": marker_queue("coditect.epoch.<uuid>"),
    }
