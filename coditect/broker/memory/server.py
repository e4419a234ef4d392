"""The broker itself: entities, routing, dead-lettering, and the faults that a test can inject."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from enum import Enum

from coditect.aio.clock import Clock, SystemClock
from coditect.broker.memory.dead_letter import Reason, dead_letter, is_cycle, routing_keys
from coditect.broker.memory.exchanges import DEFAULT, Exchanges
from coditect.broker.memory.queue import MemoryQueue, Stored
from coditect.broker.memory.table import carried, carried_text
from coditect.broker.port import ServerInfo
from coditect.broker.topology import Binding, Queue, Topology
from coditect.errors import CoditectError, NotFound, SetupError, TopologyMismatch
from coditect.model.message import Message

log = logging.getLogger(__name__)


class RouteVerdict(Enum):
    """What the broker says to a publish."""

    TAKEN = "taken"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    """A full queue did not take it."""
    LOST = "lost"
    """The connection broke before the confirm."""


@dataclass(frozen=True, slots=True)
class RoutedMessage:
    """A message on its way into the broker."""

    message: Message
    exchange: str
    routing_key: str


@dataclass(slots=True, eq=False)
class Session:
    """One process's connection as the broker sees it."""

    closed: Callable[[], None]
    """Called when the broker goes away, or closes it."""
    process: str = ""
    """The name of the process."""
    declare: Callable[[], None] = lambda: None
    """Has the process make again what it declared."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while it knows of an alarm; the broker tells whoever publishes."""

    def __post_init__(self) -> None:
        self.open.set()


class MemoryServer:
    """RabbitMQ 3.10 in memory, for one event loop. Everything is durable and survives `stop` and `start`."""

    def __init__(self, *, clock: Clock | None = None, chance: random.Random | None = None) -> None:
        """With `chance` it decides which consumer gets the next message; without, they take turns."""
        self.info = ServerInfo("Memory", (3, 10, 8))
        self._clock = clock or SystemClock()
        self._chance = chance
        self._context = copy_context()
        self._exchanges = Exchanges()
        self._queues: dict[str, MemoryQueue] = {}
        self._sessions: list[Session] = []
        self._held: list[tuple[Session, RoutedMessage, asyncio.Future[RouteVerdict]]] = []
        self._waiting: list[Callable[[], None]] = []
        self._running = True
        self._alarm = False
        self._silent: set[str] = set()
        self._confirms_to_lose = 0
        self._forbidden: set[str] = set()
        self.refusals: Counter[str] = Counter()
        """How often a publish to each forbidden exchange was tried."""

    # Faults

    def stop(self) -> None:
        """The broker dies: every connection breaks, what was unsettled comes back when it starts."""
        if not self._running:
            return
        self._running = False
        self._silent.clear()
        for queue in self._queues.values():
            queue.pause()
        for session in tuple(self._sessions):
            self.disconnect(session)
            session.closed()

    def start(self, *, lose_messages: bool = False) -> None:
        """The broker comes back; with `lose_messages` its disks were wiped, entities included."""
        if self._running:
            return
        if lose_messages:
            for name in tuple(self._queues):
                self.delete_queue(name)
            self._exchanges = Exchanges()
        self._running, self._alarm = True, False
        for queue in self._queues.values():
            queue.resume()
        waiting, self._waiting = self._waiting, []
        for arrived in waiting:
            arrived()

    def block(self) -> None:
        """An alarm (disk, memory): publishes are held until `unblock`; consumers go on."""
        self._alarm = True

    def unblock(self) -> None:
        """The alarm is over: what was held is taken, also what its publisher gave up waiting for."""
        self._alarm = False
        for session in self._sessions:
            session.open.set()
        self._take_held()

    def silence(self, queue: str) -> None:
        """The queue's leader hangs until `end_silence`: what is for it is not confirmed, and it delivers nothing."""
        self.queue(queue).pause()
        self._silent.add(queue)

    def end_silence(self, queue: str) -> None:
        """The leader goes on, if it did hang: what was held is taken."""
        if queue not in self._silent:
            return
        self._silent.discard(queue)
        if (found := self._queues.get(queue)) is not None:
            found.resume()
        self._take_held()

    def is_silent(self, queue: str) -> bool:
        """Whether its leader hangs."""
        return queue in self._silent

    def _take_held(self) -> None:
        held, self._held = self._held, []
        for session, publication, answer in held:
            try:
                if self._holds(publication):
                    self._held.append((session, publication, answer))
                else:
                    _answer(answer, self._publish(publication))
            except NotFound:  # its exchange was deleted: the channel is closed, and nobody knows
                _answer(answer, RouteVerdict.LOST)

    def _holds(self, publication: RoutedMessage) -> bool:
        """Whether it is not taken now: because of the alarm, or because it leads to a silent queue."""
        return self._alarm or any(name in self._silent for name in self._led_to(publication))

    def _led_to(self, publication: RoutedMessage) -> tuple[str, ...]:
        keys = routing_keys(publication.message, publication.routing_key)
        return self._exchanges.route(publication.exchange, keys, self._queues)

    def lose_next_confirms(self, count: int) -> None:
        """The next `count` messages are taken, but the publisher's connection breaks before the confirm."""
        self._confirms_to_lose += count

    def forbid(self, exchange: str) -> None:
        """The permissions let nobody publish to this exchange any more."""
        self._forbidden.add(exchange)

    def cancel_consumers(self, queue: str) -> None:
        """Ends the queue's consumers with `basic.cancel`; what they have in hand stays theirs."""
        self.queue(queue).cancel_consumers()

    # Connections

    def connect(self, session: Session) -> bool:
        """Takes a connection; False while the broker is down."""
        if self._running:
            self._sessions.append(session)
        return self._running

    def disconnect(self, session: Session) -> None:
        """A connection is gone: what it had sent and nobody had read is gone, too."""
        if session in self._sessions:
            self._sessions.remove(session)
        session.open.set()
        for _, _, answer in [one for one in self._held if one[0] is session]:
            _answer(answer, RouteVerdict.LOST)
        self._held = [one for one in self._held if one[0] is not session]

    async def evict(self, process: str) -> int:
        """Closes the connection of the process with this name, as the management API would; how many there were."""
        found = [one for one in self._sessions if one.process == process]
        for session in found:
            self.disconnect(session)
            session.closed()
        return len(found)

    def when_up(self, arrived: Callable[[], None]) -> None:
        """Calls back once the broker accepts connections."""
        if self._running:
            arrived()
        else:
            self._waiting.append(arrived)

    # Entities

    def declare(self, topology: Topology) -> None:
        """Makes the entities exist; idempotent.

        Raises: TopologyMismatch when one exists with other arguments; NotFound when a binding lacks an end.
        """
        for exchange in topology.exchanges:
            self._exchanges.declare(exchange)
        for queue in topology.queues:
            self._declare_queue(queue)
        for binding in topology.bindings:
            self._bind(binding)

    def restore_all(self) -> None:
        """Everybody who is connected makes again what is theirs, as each does every few seconds at RabbitMQ."""
        for session in tuple(self._sessions):
            try:
                session.declare()
            except CoditectError as error:
                log.info("A process cannot make again what it declared", extra={"reason": str(error)})

    def delete_exchange(self, name: str) -> None:
        """Removes it with its bindings; idempotent."""
        self._exchanges.delete(name)

    def unbind(self, binding: Binding) -> None:
        """Removes the binding; idempotent."""
        self._exchanges.unbind(binding)

    def _declare_queue(self, queue: Queue) -> None:
        known = self._queues.get(queue.name)
        if known is None:
            self._queues[queue.name] = MemoryQueue(
                queue, give_up=self._give_up, expire=self.delete_queue, chance=self._chance, context=self._context
            )
        elif known.declared != queue:
            raise TopologyMismatch("The queue exists with other arguments", entity=queue.name)
        else:
            known.used()

    def _bind(self, binding: Binding) -> None:
        self.queue(binding.queue)
        self._exchanges.bind(binding)

    def find(self, name: str) -> MemoryQueue | None:
        """The queue, if it exists."""
        return self._queues.get(name)

    def queue(self, name: str) -> MemoryQueue:
        """The queue.

        Raises: NotFound when there is none.
        """
        try:
            return self._queues[name]
        except KeyError:
            raise NotFound("The broker has no such exchange or queue", entity=name) from None

    def delete_queue(self, name: str) -> None:
        """Removes it with its messages and bindings; idempotent."""
        queue = self._queues.pop(name, None)
        if queue is not None:
            self._exchanges.unbind_queue(name)
            queue.close()

    # Messages

    def offer(self, session: Session, publication: RoutedMessage) -> asyncio.Future[RouteVerdict]:
        """A publish with confirm and `mandatory`: the future is the broker's answer.

        Raises: NotFound when there is no such exchange; SetupError when it is forbidden; InvalidTask when AMQP
        cannot carry it.
        """
        publication = _on_the_wire(publication)
        if publication.exchange in self._forbidden:
            self.refusals[publication.exchange] += 1
            raise SetupError("The broker's permissions do not allow it", entity=publication.exchange or "amq.default")
        answer: asyncio.Future[RouteVerdict] = asyncio.get_running_loop().create_future()
        if self._alarm:
            session.open.clear()
        if self._alarm or (self._silent and self._holds(publication)):
            self._held.append((session, publication, answer))
            return answer
        verdict = self._publish(publication)
        if verdict is RouteVerdict.TAKEN and self._confirms_to_lose > 0:
            self._confirms_to_lose -= 1
            verdict = RouteVerdict.LOST
        answer.set_result(verdict)
        return answer

    def _publish(self, publication: RoutedMessage) -> RouteVerdict:
        names = self._led_to(publication)
        if not names:
            return RouteVerdict.UNROUTABLE
        return RouteVerdict.TAKEN if self._put(publication, names) else RouteVerdict.REFUSED

    def _put(self, publication: RoutedMessage, names: tuple[str, ...]) -> bool:
        """Gives every queue its copy; False when one of them refused (the others keep theirs)."""
        taken = [
            self._queues[name].put(
                publication.message, exchange=publication.exchange, routing_key=publication.routing_key
            )
            for name in names
        ]
        return all(taken)

    def _give_up(self, queue: Queue, stored: Stored, reason: Reason) -> bool:
        message, key = dead_letter(
            stored.message,
            exchange=stored.exchange,
            routing_key=stored.routing_key,
            queue=queue,
            reason=reason,
            at_ms=self._clock.now_ms(),
        )
        exchange = queue.dead_letter_exchange or DEFAULT
        try:
            names = self._exchanges.route(exchange, routing_keys(message, key), self._queues)
        except NotFound:
            return False
        onward = tuple(name for name in names if not is_cycle(message.headers, name, reason))
        if names and not onward:
            return True
        return bool(onward) and self._put(RoutedMessage(message, exchange, key), onward)


def _on_the_wire(publication: RoutedMessage) -> RoutedMessage:
    message = publication.message
    carried_text(publication.routing_key)
    message = replace(
        message,
        headers=carried(message.headers),
        message_id=carried_text(message.message_id),
        correlation_id=carried_text(message.correlation_id),
        reply_to=carried_text(message.reply_to),
        type=carried_text(message.type),
        content_type=carried_text(message.content_type),
        app_id=carried_text(message.app_id),
    )
    return replace(publication, message=message)


def _answer(answer: asyncio.Future[RouteVerdict], verdict: RouteVerdict) -> None:
    if not answer.done():
        answer.set_result(verdict)
