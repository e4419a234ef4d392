"""The recorder of lessons: it hears of failed and recovered attempts, and writes what they teach every few seconds.

The owner of the shard of the lessons' space consumes one queue of events, which agents and dispatchers publish at a
failure and at the success after it, and at no other task. What was heard and not yet written is lost with the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace

from coditect.broker.port import Consumer, Delivery
from coditect.broker.topology import event_queue
from coditect.errors import CoditectError, InputError
from coditect.model.capability import check_capability_name
from coditect.model.ids import name_in
from coditect.model.lesson import Lesson, merged, rows_of
from coditect.model.message import Event
from coditect.settings.addresses import printable, without_secrets
from coditect.wire.control import LESSONS_SPACE
from coditect.wire.events import read_event
from coditect.wire.json import dumps
from dispatcher.ledger.commands import RECORD_LESSONS, Asked
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ports import Ports
from dispatcher.shards.completions import ignore
from dispatcher.shards.ownership import ShardOwnership

log = logging.getLogger(__name__)

FAILED, RECOVERED = "attempt.failed", "attempt.recovered"
QUEUE = "events.lessons"
FLUSH_SECONDS = 5.0
"""How long evidence is gathered before it is written."""
LESSONS_RETRY_SECONDS = 1.0
LESSON_EVENTS_PREFETCH = 20
ACK_SECONDS = 0.1
"""How long an event keeps its place: in a storm of failures, the dispatcher hears of 200 a second, and no more."""
MOST_FAILURES = 10_000
"""The number of failed tasks whose recovery is recognized, the latest ones."""
MOST_HEARD = 100
"""The number of capabilities of which evidence is gathered between two writes."""
LONGEST_EVIDENCE_CHARS = 300
LONGEST_NAME = 100
MOST_READ = 4 * LONGEST_EVIDENCE_CHARS
"""The most characters of a text that are searched for secrets."""
HANDED_OFF = "handed_off"


class LessonRecorder:
    """The recorder of lessons of one dispatcher, which works while the dispatcher owns the shard of their space."""

    def __init__(self, ports: Ports, shards: ShardOwnership) -> None:
        self._broker, self._clock, self._background = ports.broker, ports.clock, ports.background
        self._shards = shards
        self._consumer: Consumer | None = None
        self._changing = asyncio.Lock()
        self._failures: OrderedDict[str, tuple[Lesson, str, int]] = OrderedDict()
        """The last failure of each task, without its texts, with its agent's name and the attempt's number."""
        self._heard: dict[str, list[Lesson]] = {}
        """The evidence that is not written yet, by capability."""
        self._flush: asyncio.TimerHandle | None = None

    @property
    def _shard(self) -> int:
        return shard_of(LESSONS_SPACE, self._shards.count)

    @property
    def _owned(self) -> bool:
        return self._shard in self._shards.workers

    def turned(self, shard: int) -> None:
        """Begin or stop to hear of failures in the background, if the shard of the lessons was taken or left."""
        if shard == self._shard:
            self._background.start(self._follow(), name="lessons")

    async def _follow(self) -> None:
        async with self._changing:
            while self._owned and self._consumer is None:
                try:
                    await self._broker.declare(event_queue(QUEUE, (FAILED, RECOVERED)))
                    self._consumer = await self._broker.consume(
                        QUEUE, self._arrived, prefetch=LESSON_EVENTS_PREFETCH, group="lessons"
                    )
                except CoditectError as error:
                    log.info("Lessons cannot be heard yet", extra={"reason": str(error)})
                    await asyncio.sleep(LESSONS_RETRY_SECONDS)
            if not self._owned and self._consumer is not None:
                consumer, self._consumer = self._consumer, None
                await consumer.cancel()

    def _arrived(self, delivery: Delivery) -> None:
        asyncio.get_running_loop().call_later(ACK_SECONDS, delivery.ack)
        with suppress(InputError):  # whatever a stranger published there
            self.hear(read_event(delivery.message, self._clock.now_ms()))

    def hear(self, event: Event) -> None:
        """Note what an event about a failed or recovered attempt teaches; it is written with the next flush.

        Raises:
            InputError: when the event names no capability.
        """
        data = event.data
        capability = check_capability_name(data.get("capability", ""))
        agent_id, number = _plain(data.get("agent"), LONGEST_NAME), data.get("attempt")
        agent, task = name_in(agent_id) or agent_id, printable(event.subject[:LONGEST_EVIDENCE_CHARS])
        attempt, at_ms = number if isinstance(number, int) else 1, min(event.time_ms, self._clock.now_ms())
        if event.type == RECOVERED:
            if task in self._failures:
                lesson, before, last = self._failures.pop(task)
                done_by = agent if capability == lesson.capability else f"{agent}, as {capability}"
                fix = _fix(lesson, before, done_by, by_hand=data.get("by_hand") is True and attempt <= last)
                self._note(replace(lesson, fixes={fix: 1}, last_ms=at_ms))
            return
        failed = " ".join(_plain(data.get(name), LONGEST_NAME) for name in ("reason", "type")).strip()
        lesson = Lesson.of(
            capability,
            failed,
            _plain(data.get("error")),
            advice=_plain(data.get("fix")),
            tasks=(task,) if task else (),
            agents=(agent,) if agent else (),
            first_ms=at_ms,
            last_ms=at_ms,
        )
        self._note(lesson)
        if task:
            self._failures[task] = replace(lesson, why="", advice="", count=0, tasks=(), agents=()), agent, attempt
            self._failures.move_to_end(task)
            if len(self._failures) > MOST_FAILURES:
                self._failures.popitem(last=False)

    def _note(self, lesson: Lesson) -> None:
        if lesson.capability not in self._heard and len(self._heard) >= MOST_HEARD:
            return
        known = self._heard.get(lesson.capability, ())
        self._heard[lesson.capability] = merged(known, (lesson,), self._clock.now_ms())
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._write)

    def _write(self) -> None:
        """Give the gathered evidence to the worker of the shard, which adds it to the kept lessons."""
        self._flush = None
        lessons = [lesson for evidence in self._heard.values() for lesson in evidence]
        self._heard.clear()
        body = {"lessons": rows_of(lessons)}
        self._shards.put(self._shard, Asked(RECORD_LESSONS, body), ignore, size_bytes=len(dumps(body)))


def _plain(field: object, longest: int = LONGEST_EVIDENCE_CHARS) -> str:
    """Return a text of an event as one printable line without secrets; empty for any other value."""
    text = " ".join(field[:MOST_READ].split()) if isinstance(field, str) else ""
    return printable(without_secrets(text))[:longest]


def _fix(failed: Lesson, before: str, agent: str, *, by_hand: bool) -> str:
    """Return what a task's success followed, at the named agent after a failure at the one before."""
    if failed.failed.startswith(HANDED_OFF):
        return f"a handoff to {agent}"
    if by_hand:
        return "another run that a person ordered"
    return f"another attempt by {agent}" if agent == before else f"another agent: {agent}"
