"""Subscriptions of one process to event streams (EIP's Publish-Subscribe)."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

from coditect.aio.clock import SystemClock
from coditect.aio.loop import HomeLoop
from coditect.broker.port import Broker, Consumer, Delivery, tell
from coditect.broker.topology import event_queue
from coditect.errors import CoditectError, InvalidTask
from coditect.model.message import Event
from coditect.wire import control_messages
from coditect.wire.events import read_event, subject_key

log = logging.getLogger(__name__)

AGENTS = "/agents/"
"""The prefix of the source of an event that an agent published."""


@dataclass(frozen=True, slots=True)
class EventFilter:
    """A filter of events: an event passes if it matches some value of each field that is not empty."""

    kinds: frozenset[str] = frozenset()
    """Types of events, or their first words: `task.completed`, or `task` for all events of tasks."""
    tasks: frozenset[str] = frozenset()
    workflows: frozenset[str] = frozenset()
    """Ids of workflows, for their own events, those of their nodes and those of their tasks."""
    capabilities: frozenset[str] = frozenset()
    agents: frozenset[str] = frozenset()
    """Ids of agents, for their own events and those of the tasks and nodes that they execute."""

    @classmethod
    def of(
        cls,
        *,
        kind: Iterable[str] = (),
        task: Iterable[str] = (),
        workflow: Iterable[str] = (),
        capability: Iterable[str] = (),
        agent: Iterable[str] = (),
    ) -> Self:
        """Return the filter for the given values; the kind `task` or `task.*` means all event types of tasks.

        A kind is an event type or its first words, and may end in `.*`.
        """
        kinds = frozenset(pattern.removesuffix(".*").removesuffix(".#") for pattern in kind) - {"*", "#"}
        return cls(kinds, frozenset(task), frozenset(workflow), frozenset(capability), frozenset(agent))

    def takes(self, event: Event) -> bool:
        """Tell whether an event passes the filter."""
        return (
            (not self.kinds or not self.kinds.isdisjoint(_kinds(event.type)))
            and (not self.tasks or not self.tasks.isdisjoint(_tasks(event)))
            and (not self.workflows or event.subject.partition(":")[0] in self.workflows)
            and (not self.capabilities or event.data.get("capability") in self.capabilities)
            and (not self.agents or not self.agents.isdisjoint(_agents(event)))
        )


def _kinds(type_: str) -> Iterable[str]:
    """Yield the type of an event and its beginnings: `a.b.c`, `a.b`, `a`."""
    while type_:
        yield type_
        type_ = type_.rpartition(".")[0]


def _tasks(event: Event) -> tuple[str, ...]:
    node = event.data.get("node")
    return (event.subject,) if node is None else (event.subject, f"{event.subject}:{node}")


def _agents(event: Event) -> Iterable[str]:
    source = event.source.removeprefix(AGENTS) if event.source.startswith(AGENTS) else ""
    own = event.subject if event.type.startswith("agent.") else ""
    return filter(None, (str(event.data.get("agent") or ""), source, own))


EVENT_PREFETCH = 1_000
MOST_BUFFERED = 10_000
ANNOUNCE_SECONDS = 5.0
CLOCK = SystemClock()


class EventSubscription:
    """A subscription to events by topic patterns, and optionally by subjects; lasts for an `async with` block.

    Each event goes to `on_event`, on the event loop; the callback must not block and must not raise. `on_lost` is
    called when the broker has lost the subscription, which comes back by itself: events may be missing from then on.
    """

    def __init__(
        self,
        broker: Broker,
        queue: str,
        patterns: tuple[str, ...],
        subjects: tuple[str, ...] = (),
        *,
        on_event: Callable[[Event], None],
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._broker = broker
        self._queue = queue
        keys = [subject_key(pattern, subject) for pattern in patterns for subject in subjects]
        followed = [key for key in keys if key is not None]
        # a subject without a key of its own is found among all
        self._keys = tuple(followed) if subjects and len(followed) == len(keys) else patterns
        self._subjects = subjects
        self._on_event = on_event
        self._on_lost = on_lost
        self._consumer: Consumer | None = None

    @property
    def active(self) -> bool:
        """Tell whether the subscription's consumer is registered at the broker right now."""
        return self._consumer is not None and self._consumer.active

    async def __aenter__(self) -> Self:
        await self._broker.declare(event_queue(self._queue, self._keys))
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self._end)
            self._consumer = await self._broker.consume(
                self._queue, self._take, prefetch=EVENT_PREFETCH, group="events", on_lost=self._on_lost
            )
            await self.announce()
            opening.pop_all()
        return self

    async def announce(self) -> None:
        """Announce this listener to all agents and dispatchers, so that they send the events that they had muted.

        Raises:
            BrokerUnavailable: when the broker does not answer within 5 s; retryable.
        """
        message = control_messages.listen(self._subjects)
        if not await tell(self._broker, message, within_seconds=ANNOUNCE_SECONDS):
            log.debug("No agent is there to be told that somebody listens")

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._consumer is not None:
            await self._consumer.cancel()
        try:
            await self._broker.delete_queue(self._queue)
        except CoditectError as failure:
            log.debug("An event queue is left to expire", extra={"reason": str(failure)})

    def _take(self, delivery: Delivery) -> None:
        try:
            event = read_event(delivery.message, CLOCK.now_ms())
            if not self._subjects or event.subject in self._subjects:
                self._on_event(event)
        except InvalidTask as error:
            log.warning("An event was not readable", extra={"reason": str(error)})
        delivery.ack()


class EventStream(EventSubscription):
    """A subscription whose events are iterated; a reader more than 10,000 events behind misses the oldest."""

    def __init__(self, broker: Broker, queue: str, patterns: tuple[str, ...], subjects: tuple[str, ...] = ()) -> None:
        super().__init__(broker, queue, patterns, subjects, on_event=self._keep)
        self._home = HomeLoop("event stream")
        self._events: deque[Event] = deque(maxlen=MOST_BUFFERED)
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._home.enter()
        try:
            return await super().__aenter__()
        except BaseException:
            self._home.leave()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._home.leave()
        await super().__aexit__(*error)

    def _keep(self, event: Event) -> None:
        self._events.append(event)
        self._arrived.set()

    async def next_before(self, end: asyncio.Future[Any]) -> Event | None:
        """Return the next event; None when the given future ends first and no event is buffered."""
        while not self._events and not end.done():
            self._arrived.clear()
            arrival = asyncio.ensure_future(self._arrived.wait())
            both: set[asyncio.Future[Any]] = {arrival, end}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
        return self._events.popleft() if self._events else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            self._home.check()
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()


class EventStreams:
    """A factory of event streams, each with its own queue."""

    def __init__(self, broker: Broker, *, name: str) -> None:
        self._broker = broker
        self._name = name
        self._numbers = count(1)

    def stream(self, *patterns: str, subjects: Collection[str] = ()) -> EventStream:
        """Return a stream of the events that match any topic pattern and, if `subjects` has ids, are about one."""
        queue = f"events.{self._name}.{next(self._numbers)}"
        return EventStream(self._broker, queue, patterns, tuple(subjects))
