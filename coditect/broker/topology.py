"""Every exchange, queue, binding and argument, as values.

::

    coditect.submit     topic      <capability>.<p0|p1|p2>   tasks.<capability>.<level>   ours: unroutable comes back
    coditect.tasks      topic, AE  the same                  the same                     for everybody else
    coditect.agents     direct     <agent>, mail.<agent>     agent.<agent>.tasks, agent.<agent>.mail
                                   next.<agent>              agent.<agent>.next
    coditect.replies    direct     <reply queue>             reply.<process>
    coditect.events     topic      task.completed, ...       whoever binds
    coditect.broadcast  fanout     -                         every agent's mail
    coditect.retry.after.<ms>
                        fanout     the task's key            retry.after.<ms> -> coditect.retry.back
    coditect.retry.back topic, AE  the task's key            retry.back.<capability> -> coditect.tasks
    coditect.dead       topic      the task's key            dead.<capability>, dead.notices
    coditect.unrouted   fanout     -                         unrouted, unrouted.notices
    coditect.results    direct     <shard>                   results.<shard>
    coditect.control    direct     <shard>, any              control.<shard>, control
    -                   -          -                         coditect.epoch.<uuid>, see `marker_queue`

Task, retry and dead queues are quorum queues. `x-delivery-limit` is a backstop and always explicit: on
RabbitMQ 3.10 none means for ever, on 4.x it means 20, and -1 drops messages on 3.10. Attempts are counted
in our own header. Dead-lettering is at-least-once, which needs `reject-publish`. No `x-max-priority`
(refused by quorum queues on 3.10), no transient queues (refused by 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.retry import RUNGS_MS
from coditect.wire import routing

TASK_DELIVERY_LIMIT = 1_000
"""A drain may hand work back without burning it."""
DEAD_DELIVERY_LIMIT = 1_000_000
"""Looking at a dead letter is a delivery, too."""
REPLY_EXPIRES_MS = 600_000
MAIL_EXPIRES_MS = 60_000
INBOX_TTL_MS = 1_000
INBOX_EXPIRES_MS = 3_600_000
"""How long an agent's own queues outlive it where nobody removes them. What is in a queue then is gone with it."""
INBOX_LOOK_SECONDS = INBOX_EXPIRES_MS / 4_000
"""Who pins to an agent looks that often whether its inbox is there; to look at a queue keeps it from expiring."""
BACK_TTL_MS = 1
NOTICES_MS = 3_600_000
"""How long a notice waits for a dispatcher, and its queue for the next one."""
MOST_NOTICES = 10_000
MOST_NOTICE_BYTES = 64 * 1024 * 1024

Argument = str | int


class ExchangeType(StrEnum):
    """How an exchange routes."""

    DIRECT = "direct"
    TOPIC = "topic"
    FANOUT = "fanout"


class QueueType(StrEnum):
    """How a queue keeps its messages."""

    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: ExchangeType
    alternate: str | None = None

    @property
    def arguments(self) -> dict[str, Argument]:
        """As AMQP wants them."""
        return {"alternate-exchange": self.alternate} if self.alternate else {}


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue."""

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
    """What a full queue does: drop its oldest messages, or (default) refuse the newest. Only for copies."""
    once: bool = False
    """Made when it is declared, and not again by itself after the broker lost it: its absence tells something."""

    @property
    def arguments(self) -> dict[str, Argument]:
        """As AMQP wants them; a quorum queue with dead-lettering gets at-least-once and reject-publish."""
        quorum = self.type is QueueType.QUORUM
        safe_dead_letters = quorum and self.dead_letter_exchange is not None
        wanted: dict[str, Argument | None] = {
            "x-queue-type": self.type.value,
            "x-delivery-limit": self.delivery_limit if quorum else None,
            "x-dead-letter-exchange": self.dead_letter_exchange,
            "x-dead-letter-routing-key": self.dead_letter_routing_key,
            "x-dead-letter-strategy": "at-least-once" if safe_dead_letters else None,
            "x-overflow": self._overflow if safe_dead_letters or self.bounded else None,
            "x-message-ttl": self.message_ttl_ms,
            "x-expires": self.expires_ms,
            "x-max-length": self.max_length,
            "x-max-length-bytes": self.max_length_bytes,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def bounded(self) -> bool:
        """Whether it can be full."""
        return self.max_length is not None or self.max_length_bytes is not None

    @property
    def _overflow(self) -> str:
        return "drop-head" if self.drops_oldest else "reject-publish"


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of the exchange with this key go to the queue."""

    exchange: str
    queue: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """Entities in the order in which they must be declared."""

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
        """What is declared again after the broker lost it."""
        if not any(one.once for one in self.queues):
            return self
        return replace(self, queues=tuple(one for one in self.queues if not one.once))

    def only_queue(self, name: str) -> Topology:
        """That queue and its bindings."""
        return Topology(
            (),
            tuple(one for one in self.queues if one.name == name),
            tuple(one for one in self.bindings if one.queue == name),
        )

    def without_queue(self, name: str) -> Topology:
        """The same without this queue and its bindings."""
        return Topology(
            self.exchanges,
            tuple(one for one in self.queues if one.name != name),
            tuple(one for one in self.bindings if one.queue != name),
        )


def base_topology() -> Topology:
    """What every process needs, whoever it is."""
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
    return Topology(exchanges, (unrouted,), (Binding(routing.UNROUTED, unrouted.name),)) + _retry_ladder()


def _retry_ladder() -> Topology:
    """The rungs are shared, the way out of them is not.

    RabbitMQ hands over but a few dozen dead letters of a queue at once, and waits while their target refuses them.
    So a rung leads to a queue of the capability, which is never full; there a task waits, and holds up its like alone.
    A capability whose agents declare no such queue has its tasks at the door at once.
    """
    ladder = Topology((Exchange(routing.RETRY_BACK, ExchangeType.TOPIC, alternate=routing.TASKS),))
    for delay_ms in RUNGS_MS:
        exchange = Exchange(routing.retry_exchange(delay_ms), ExchangeType.FANOUT)
        queue = Queue(
            routing.retry_queue(delay_ms),
            delivery_limit=TASK_DELIVERY_LIMIT,
            dead_letter_exchange=routing.RETRY_BACK,
            message_ttl_ms=delay_ms,
        )
        ladder += Topology((exchange,), (queue,), (Binding(exchange.name, queue.name),))
    return ladder


def capability_queues(capability: str, *, max_length: int | None = None) -> Topology:
    """The queues of one capability: its dead letters and returning tasks first, then one per priority level."""
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
            max_length=max_length,
        )
        queues.append(queue)
        for exchange in (routing.SUBMIT, routing.TASKS):
            bindings.append(Binding(exchange, queue.name, routing.task_key(capability, level)))
            if level is Priority.P1:
                bindings.append(Binding(exchange, queue.name, capability))
    return Topology((), tuple(queues), tuple(bindings))


def agent_queues(agent_id: AgentId, *, slots: int) -> Topology:
    """One agent's inbox (pinned tasks) and what is next for it, both handed on after 1 s, and its mail.

    What is next comes from the ledger, which has it again if it is lost: a classic queue hands it over at once.
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
    mail = Queue(routing.mail_queue(agent_id), QueueType.CLASSIC, expires_ms=MAIL_EXPIRES_MS)
    return Topology(
        (),
        (inbox, following, mail),
        (
            Binding(routing.AGENTS, inbox.name, agent_id),
            Binding(routing.AGENTS, following.name, routing.next_key(agent_id)),
            Binding(routing.AGENTS, mail.name, routing.mail_key(agent_id)),
            Binding(routing.BROADCAST, mail.name),
        ),
    )


def reply_queue(name: str, *, quorum: bool = False) -> Topology:
    """One process's replies; outlives a broker restart, gone ten minutes after its process."""
    queue = Queue(name, QueueType.QUORUM if quorum else QueueType.CLASSIC, expires_ms=REPLY_EXPIRES_MS)
    if quorum:
        queue = replace(queue, delivery_limit=TASK_DELIVERY_LIMIT)
    return Topology((), (queue,), (Binding(routing.REPLIES, name, name),))


def event_queue(name: str, patterns: tuple[str, ...]) -> Topology:
    """One listener's events, by topic pattern; bounded: the oldest go when nobody reads.

    Refusing the newest would nack the publish, and its repetition would reach the other listeners twice.
    """
    queue = Queue(name, QueueType.CLASSIC, expires_ms=MAIL_EXPIRES_MS, max_length=10_000, drops_oldest=True)
    return Topology((), (queue,), tuple(Binding(routing.EVENTS, name, pattern) for pattern in patterns))


def notices() -> Topology:
    """What a dispatcher reads to answer for tasks that nobody ran: copies of dead letters and the unrouted.

    Copies only, so they are bounded whether a dispatcher runs or not: the oldest go first, each is gone after
    an hour, and the queues are when none was there for an hour. They never refuse: the refusal would reach
    whoever publishes the original, and hold up dead-lettering.
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


def control_plane(*, quorum: bool = False) -> Topology:
    """What every dispatcher consumes: requests that any of them may take."""
    return _requests_queue(routing.CONTROL_QUEUE, "any", quorum)


def shard_queues(shard: int, *, quorum: bool = False) -> Topology:
    """What the owner of a shard consumes: what agents tell, and requests about its workflows."""
    return _results_queue(shard, quorum) + _requests_queue(routing.control_queue(shard), str(shard), quorum)


def marker_queue(name: str) -> Topology:
    """An empty queue that tells a broker from one that lost its data: it is gone with everything else."""
    return Topology((), (Queue(name, delivery_limit=DEAD_DELIVERY_LIMIT, once=True),))


def _results_queue(shard: int, quorum: bool) -> Topology:
    """Nothing in it carries a task key, so a dead letter of it names its queue.

    It is a hop of every node: a classic one hands on at once what a quorum queue writes to the disk first, and confirms
    it no sooner than it is on the disk or acked, which its consumer does when the ledger has it.
    """
    name = routing.results_queue(shard)
    queue = replace(_dispatchers_queue(name, quorum), dead_letter_exchange=routing.UNROUTED)
    queue = replace(queue, dead_letter_routing_key=name)
    return Topology((), (queue,), (Binding(routing.RESULTS, name, str(shard)),))


def _requests_queue(name: str, key: str, quorum: bool) -> Topology:
    """Without dead letters: every request is answered, and what expires here is asked again or wanted by nobody."""
    return Topology((), (_dispatchers_queue(name, quorum),), (Binding(routing.CONTROL, name, key),))


def _dispatchers_queue(name: str, quorum: bool) -> Queue:
    return Queue(name, QueueType.QUORUM if quorum else QueueType.CLASSIC, delivery_limit=DEAD_DELIVERY_LIMIT)
