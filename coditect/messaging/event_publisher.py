"""The publisher of a process's events to the fleet, almost free while no process listens."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any

from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Event
from coditect.model.result import ENDINGS
from coditect.model.task import Task
from coditect.telemetry.metrics import EVENTS_DROPPED, MemoryMetrics, Metrics
from coditect.wire import routing
from coditect.wire.events import event_message

log = logging.getLogger(__name__)

MUTE_SECONDS = 5.0
MOST_UNDER_WAY = 1_000
MOST_FOLLOWED = 10_000
EVENT_PUBLISH_SECONDS = 5.0


class Events:
    """A publisher of CloudEvents to `coditect.events`, at most once each, without ever blocking the caller.

    An event that comes back unroutable has no listener: its type is muted for a while, or until a listener announces
    itself (`unmute`). Events about a followed subject are sent all the same.
    """

    def __init__(self, broker: Broker, clock: Clock, *, source: str, metrics: Metrics | None = None) -> None:
        self._broker = broker
        self._clock = clock
        self._source = source
        self._ids = map(f"{clock.new_id()}-{{}}".format, count(1))
        """The ids of the events: a random part of this publisher, and a number."""
        self._muted: dict[str, asyncio.TimerHandle] = {}
        """The muted event types, of which no event is sent, each with the timer that ends the muting."""
        self._untried: set[str] = set()
        """The event types that were muted until now: one event of each is sent, to see whether it has a listener."""
        self._followed: OrderedDict[str, None] = OrderedDict()
        """Subjects that listeners announced to follow, until the last event, or an event without a listener."""
        self._under_way = 0
        self.dropped = (metrics or MemoryMetrics()).counter(EVENTS_DROPPED)

    def heard(self, type_: str, subject: str = "") -> bool:
        """Tell whether an event may have a listener; without one, the caller need not gather the event's data."""
        return type_ not in self._muted or subject in self._followed

    def emit(self, type_: str, at_ms: int | None = None, /, *, subject: str = "", **data: Any) -> None:
        """Publish an event in the background; drop it when no process listens, or when too many events wait to be sent.

        `at_ms` is the instant of the event, in milliseconds since the Unix epoch; None means now.
        """
        if type_ in self._muted and subject not in self._followed:
            return
        if self._under_way >= MOST_UNDER_WAY:
            self.dropped.value += 1
            return
        self._under_way += 1
        if type_ in self._untried and subject not in self._followed:
            self._mute(type_)
        event = Event(type_, self._source, next(self._ids), at_ms or self._clock.now_ms(), subject, data)
        confirm = asyncio.get_running_loop().create_future()
        confirm.add_done_callback(partial(self._sent, event))
        try:
            self._broker.post(
                event_message(event),
                confirm,
                exchange=routing.EVENTS,
                routing_key=type_,
                timeout_seconds=EVENT_PUBLISH_SECONDS,
            )
        except CoditectError as error:
            confirm.set_exception(error)

    def emit_attempt(self, type_: str, task: Task, at_ms: int, agent: AgentId) -> None:
        """Publish an event about a task's attempt as `emit` does; without a listener, do not even gather its data."""
        subject = task.id or ""
        if type_ not in self._muted or subject in self._followed:
            self.emit(type_, at_ms, subject=subject, capability=task.capability, agent=agent, attempt=task.attempt)

    def unmute(self, subjects: Iterable[str] = ()) -> None:
        """Resume sending events that had no listener: all, or only those about the things with the given ids."""
        if not subjects:
            for type_ in tuple(self._muted):
                self._end_mute(type_)
            self._untried.clear()
        for subject in subjects:
            self._followed[subject] = None
            if len(self._followed) > MOST_FOLLOWED:
                self._followed.popitem(last=False)

    def _sent(self, event: Event, confirm: asyncio.Future[None]) -> None:
        """Mute the event's type if the broker found no listener, or unmute it if it found one; count a failed send.

        A confirm unmutes no type when a listener follows the event's subject, which may be the only one that it has. An
        error that is no CoditectError is logged, and not counted.
        """
        self._under_way -= 1
        error = confirm.exception()
        if isinstance(error, Unroutable):
            self._followed.pop(event.subject, None)
            self._mute(event.type)
        elif isinstance(error, CoditectError):
            self.dropped.value += 1
            level = logging.WARNING if isinstance(error, InvalidTask) else logging.DEBUG
            log.log(level, "An event was dropped", extra={"event_type": event.type, "reason": str(error)})
        elif error is not None:
            log.error("An event could not be sent", exc_info=error, extra={"event_type": event.type})
        else:
            if event.subject not in self._followed:
                if event.type in self._muted:
                    self._end_mute(event.type)
                self._untried.discard(event.type)
            if event.type in ENDINGS:
                self._followed.pop(event.subject, None)

    def _mute(self, type_: str) -> None:
        self._untried.discard(type_)
        self._end_mute(type_)
        self._muted[type_] = asyncio.get_running_loop().call_later(MUTE_SECONDS, self._try_again, type_)

    def _try_again(self, type_: str) -> None:
        del self._muted[type_]
        self._untried.add(type_)

    def _end_mute(self, type_: str) -> None:
        timer = self._muted.pop(type_, None)
        if timer is not None:
            timer.cancel()
