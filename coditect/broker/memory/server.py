"""The in-memory broker itself: exchanges, queues, routing, dead-lettering, and faults for tests to inject."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any

from coditect.aio.clock import Clock, SystemClock
from coditect.broker.memory.queue import MemoryQueue, Reason, Stored, dead_letter, is_cycle, routing_keys
from coditect.broker.port import ServerInfo
from coditect.broker.topology import Binding, Exchange, ExchangeType, Queue, Topology
from coditect.errors import CoditectError, InvalidTask, NotFound, SetupError, TopologyMismatch
from coditect.model.message import HeaderTable, Message, TemplateHeaders

log = logging.getLogger(__name__)

MAX_KEY_BYTES = 128
MAX_SHORT_BYTES = 255
_LARGEST = 2**63


def carried(headers: HeaderTable) -> dict[str, Any]:
    """Return a copy of a header table as a consumer would receive it.

    Raises:
        InvalidTask: when AMQP has no type for a value or key.
    """
    if type(headers) is TemplateHeaders:
        headers = {**headers.shared, **headers.own}
    return {_key(name): _value(value) for name, value in headers.items()}


def carried_text(text: str | None) -> str | None:
    """Return a property or routing key as a consumer would receive it; an empty text becomes None.

    Raises:
        InvalidTask: when the text is longer.
    """
    if text and len(_bytes(text)) > MAX_SHORT_BYTES:
        raise InvalidTask("A property or routing key is over 255 bytes", begins=text[:40])
    return text or None


def _key(name: object) -> str:
    if not isinstance(name, str) or len(_bytes(name)) > MAX_KEY_BYTES:
        raise InvalidTask("A header's name is text of at most 128 bytes", name=str(name)[:40])
    return name


def _value(value: Any) -> Any:
    match value:
        case str():
            _bytes(value)
        case bytes():
            value = bytearray(value)
        case datetime():
            value = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
            value = value.replace(microsecond=0)
        case Mapping():
            value = carried(value)
        case list() | tuple():
            value = [_value(item) for item in value]
        case _ if not _is_plain(value):
            raise InvalidTask("AMQP has no type for a header's value", type=type(value).__name__)
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return -_LARGEST <= value < _LARGEST
    return value is None or isinstance(value, float | Decimal | bytearray)


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask("Text on the wire is UTF-8", reason=str(error)) from error


DEFAULT = ""
"""The name of the default exchange, to which every queue is bound under its own name."""


class Exchanges:
    """The exchanges of one in-memory broker, with their bindings."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._bindings: dict[str, dict[Binding, None]] = {}

    def declare(self, exchange: Exchange) -> None:
        """Create an exchange in the in-memory broker unless it exists; idempotent.

        Raises:
            TopologyMismatch: when it exists with another type or alternate exchange.
        """
        known = self._exchanges.setdefault(exchange.name, exchange)
        if known != exchange:
            raise TopologyMismatch("The exchange exists with other arguments", entity=exchange.name)
        self._bindings.setdefault(exchange.name, {})

    def bind(self, binding: Binding) -> None:
        """Bind a queue to an exchange with a routing key; idempotent.

        Raises:
            NotFound: when there is no such exchange.
        """
        self._bindings_of(binding.exchange)[binding] = None

    def unbind(self, binding: Binding) -> None:
        """Remove a binding between a queue and an exchange; idempotent."""
        self._bindings.get(binding.exchange, {}).pop(binding, None)

    def delete(self, name: str) -> None:
        """Delete an exchange and its bindings; idempotent."""
        self._exchanges.pop(name, None)
        self._bindings.pop(name, None)

    def unbind_queue(self, queue: str) -> None:
        """Remove all bindings of a deleted queue."""
        for bindings in self._bindings.values():
            for binding in [binding for binding in bindings if binding.queue == queue]:
                del bindings[binding]

    def route(self, exchange: str, keys: Iterable[str], queues: Iterable[str]) -> tuple[str, ...]:
        """Return the queues to which an exchange, else its alternate exchange, routes any of the keys.

        Each queue is named once.

        Raises:
            NotFound: when there is no such exchange.
        """
        keys = tuple(keys)
        if exchange == DEFAULT:
            known = set(queues)
            return tuple(dict.fromkeys(key for key in keys if key in known))
        tried: set[str] = set()
        name: str | None = exchange
        while name is not None and name not in tried:
            found = tuple(dict.fromkeys(self._matches(name, keys)))
            if found:
                return found
            tried.add(name)
            alternate = self._exchanges[name].alternate
            name = alternate if alternate in self._exchanges else None
        return ()

    def _matches(self, exchange: str, keys: tuple[str, ...]) -> Iterator[str]:
        bindings = self._bindings_of(exchange)
        match self._exchanges[exchange].type:
            case ExchangeType.FANOUT:
                yield from (binding.queue for binding in bindings)
            case ExchangeType.DIRECT:
                yield from (binding.queue for binding in bindings if binding.key in keys)
            case ExchangeType.TOPIC:
                yield from (
                    binding.queue for binding in bindings if any(topic_matches(binding.key, key) for key in keys)
                )

    def _bindings_of(self, exchange: str) -> dict[Binding, None]:
        try:
            return self._bindings[exchange]
        except KeyError:
            raise NotFound("The broker has no such exchange or queue", entity=exchange) from None


@lru_cache(maxsize=4096)
def topic_matches(pattern: str, key: str) -> bool:
    """Tell whether a topic pattern matches a key: ``*`` is exactly one word, ``#`` any number of words."""
    return _words_match(_words(pattern), _words(key))


def _words(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")) if key else ()


def _words_match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    head, tail = pattern[0], pattern[1:]
    if head == "#":
        return any(_words_match(tail, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _words_match(tail, words[1:])


class RouteVerdict(Enum):
    """The in-memory broker's answer to a publish."""

    TAKEN = "taken"
    UNROUTABLE = "unroutable"
    REFUSED = "refused"
    """A full queue refused the message."""
    LOST = "lost"
    """The connection broke before the confirm, so the outcome is unknown."""


@dataclass(frozen=True, slots=True)
class RoutedMessage:
    """A message to publish, with its exchange and routing key."""

    message: Message
    exchange: str
    routing_key: str


@dataclass(slots=True, eq=False)
class Session:
    """A process's connection as the in-memory broker sees it."""

    closed: Callable[[], None]
    """The callback for when the broker stops or closes the connection."""
    process: str = ""
    """The name of the connected process."""
    declare: Callable[[], None] = lambda: None
    """The function that makes the process declare its entities again."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """The event that is cleared while an alarm stops the process's publishes."""

    def __post_init__(self) -> None:
        self.open.set()


class MemoryServer:
    """An in-memory RabbitMQ 3.10 for one event loop; exchanges, queues and messages survive `stop` and `start`."""

    def __init__(self, *, clock: Clock | None = None, seeded: random.Random | None = None) -> None:
        """Make an empty broker; the random source `seeded` picks the next consumer, without it consumers take turns."""
        self.info = ServerInfo("Memory", (3, 10, 8))
        self._clock = clock or SystemClock()
        self._seeded = seeded
        self.context = copy_context()
        """The context variables in which the broker's own timers run."""
        self.exchanges = Exchanges()
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
        """The number of publishes to each forbidden exchange."""

    # Faults

    def stop(self) -> None:
        """Stop the broker: every connection breaks, and unsettled messages are ready again at the next start."""
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
        """Start the stopped broker, without an alarm; with `lose_messages`, exchanges, queues and messages are gone."""
        if self._running:
            return
        if lose_messages:
            for name in tuple(self._queues):
                self.delete_queue(name)
            self.exchanges = Exchanges()
        self._running, self._alarm = True, False
        for queue in self._queues.values():
            queue.resume()
        waiting, self._waiting = self._waiting, []
        for arrived in waiting:
            arrived()

    def block(self) -> None:
        """Raise an alarm, as for disk or memory: publishes are held until `unblock`, deliveries go on."""
        self._alarm = True

    def unblock(self) -> None:
        """End the alarm, and take the held publishes, even if their publishers wait no longer."""
        self._alarm = False
        for session in self._sessions:
            session.open.set()
        self._take_held()

    def silence(self, queue: str) -> None:
        """Make a queue's leader hang until `end_silence`: publishes to the queue get no confirm, deliveries stop."""
        self.queue(queue).pause()
        self._silent.add(queue)

    def end_silence(self, queue: str) -> None:
        """Make a hanging queue leader work again, and take the held publishes."""
        if queue not in self._silent:
            return
        self._silent.discard(queue)
        if (found := self._queues.get(queue)) is not None:
            found.resume()
        self._take_held()

    def is_silent(self, queue: str) -> bool:
        """Tell whether a queue's leader hangs."""
        return queue in self._silent

    def _take_held(self) -> None:
        held, self._held = self._held, []
        for session, publication, answer in held:
            try:
                if self._holds(publication):
                    self._held.append((session, publication, answer))
                else:
                    _answer(answer, self._publish(publication))
            except NotFound:  # its exchange was deleted: the channel is closed, and it is not known
                _answer(answer, RouteVerdict.LOST)

    def _holds(self, publication: RoutedMessage) -> bool:
        """Tell whether an alarm or a hanging queue leader holds up a publish now."""
        return self._alarm or any(name in self._silent for name in self._led_to(publication))

    def _led_to(self, publication: RoutedMessage) -> tuple[str, ...]:
        keys = routing_keys(publication.message, publication.routing_key)
        return self.exchanges.route(publication.exchange, keys, self._queues)

    def lose_next_confirms(self, count: int) -> None:
        """Take the next `count` messages, but answer each publish with LOST, as if the connection had broken."""
        self._confirms_to_lose += count

    def forbid(self, exchange: str) -> None:
        """Refuse all publishes to an exchange with a SetupError, as missing permissions would."""
        self._forbidden.add(exchange)

    def cancel_consumers(self, queue: str) -> None:
        """Cancel a queue's consumers with `basic.cancel`; their unsettled messages stay unsettled."""
        self.queue(queue).cancel_consumers()

    # Connections

    def connect(self, session: Session) -> bool:
        """Accept a connection; return False while the broker is down."""
        if self._running:
            self._sessions.append(session)
        return self._running

    def disconnect(self, session: Session) -> None:
        """Remove a connection; its publishes that an alarm or a hanging queue leader holds up get the answer LOST."""
        if session in self._sessions:
            self._sessions.remove(session)
        session.open.set()
        for _, _, answer in [held for held in self._held if held[0] is session]:
            _answer(answer, RouteVerdict.LOST)
        self._held = [held for held in self._held if held[0] is not session]

    async def evict(self, process: str) -> int:
        """Close the connections of a process, as the management API would; return the number of connections."""
        found = [session for session in self._sessions if session.process == process]
        for session in found:
            self.disconnect(session)
            session.closed()
        return len(found)

    async def queues(self) -> frozenset[str]:
        """Return the names of all queues, as the management API would tell."""
        return frozenset(self._queues)

    async def messages(self, queue: str) -> int | None:
        """Return the number of all messages in a queue, as the management API would tell; None without the queue."""
        found = self.find(queue)
        return None if found is None else found.total

    def when_up(self, arrived: Callable[[], None]) -> None:
        """Call a function as soon as the broker accepts connections: at once, or at the next start."""
        if self._running:
            arrived()
        else:
            self._waiting.append(arrived)

    # Entities

    def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings; idempotent.

        Raises:
            TopologyMismatch: when an entity exists with other arguments.
            NotFound: when the exchange or queue of a binding is missing.
        """
        for exchange in topology.exchanges:
            self.exchanges.declare(exchange)
        for queue in topology.queues:
            self._declare_queue(queue)
        for binding in topology.bindings:
            self.queue(binding.queue)
            self.exchanges.bind(binding)

    def restore_all(self) -> None:
        """Make every connected process declare its exchanges, queues and bindings again; log a failure, and go on.

        With RabbitMQ, processes do so by themselves.
        """
        for session in tuple(self._sessions):
            try:
                session.declare()
            except CoditectError as error:
                log.info("A process cannot make again what it declared", extra={"reason": str(error)})

    def _declare_queue(self, queue: Queue) -> None:
        known = self._queues.get(queue.name)
        if known is None:
            self._queues[queue.name] = MemoryQueue(
                queue, give_up=self._give_up, expire=self.delete_queue, seeded=self._seeded, context=self.context
            )
        elif known.declared != queue:
            raise TopologyMismatch("The queue exists with other arguments", entity=queue.name)
        else:
            known.used()

    def find(self, name: str) -> MemoryQueue | None:
        """Return the queue with the given name; None when it does not exist."""
        return self._queues.get(name)

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue with the given name, or raise NotFound.

        Raises:
            NotFound: when it does not exist.
        """
        try:
            return self._queues[name]
        except KeyError:
            raise NotFound("The broker has no such exchange or queue", entity=name) from None

    def delete_queue(self, name: str) -> None:
        """Delete a queue with its messages and bindings; idempotent."""
        queue = self._queues.pop(name, None)
        if queue is not None:
            self.exchanges.unbind_queue(name)
            queue.close()

    # Messages

    def offer(self, session: Session, publication: RoutedMessage) -> asyncio.Future[RouteVerdict]:
        """Publish a message with confirm and `mandatory`; return the future of the broker's answer.

        Raises:
            NotFound: when there is no such exchange.
            SetupError: when publishes to the exchange are forbidden.
            InvalidTask: when AMQP cannot carry the message.
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
        """Put a message into each named queue; return False when any of the queues refused the message."""
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
            names = self.exchanges.route(exchange, routing_keys(message, key), self._queues)
        except NotFound:
            return False
        onward = tuple(name for name in names if not is_cycle(message.headers, name, reason))
        if names and not onward:
            return True
        return bool(onward) and self._put(RoutedMessage(message, exchange, key), onward)


_SHORT_TEXTS = ("message_id", "correlation_id", "reply_to", "type", "content_type", "app_id")


def _on_the_wire(publication: RoutedMessage) -> RoutedMessage:
    message = publication.message
    carried_text(publication.routing_key)
    texts: dict[str, Any] = {name: carried_text(getattr(message, name)) for name in _SHORT_TEXTS}
    message = replace(message, headers=carried(message.headers), **texts)
    return replace(publication, message=message)


def _answer(answer: asyncio.Future[RouteVerdict], verdict: RouteVerdict) -> None:
    if not answer.done():
        answer.set_result(verdict)
