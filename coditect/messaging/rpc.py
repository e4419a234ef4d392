"""Request and reply (EIP): tasks sent with a return address, and each reply passed to the caller that waits.

A process has one `Requests`, with one reply queue. The queue is durable and keeps its name over reconnects, so a
confirmed reply arrives even when the broker restarted in between. The first reply counts.

A reply is identified by its correlation id alone, and anyone may have an agent write to the reply queue: so the
correlation id of a request is a random token that only the holders of the request know.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Self
from weakref import WeakValueDictionary

from coditect.blobs import NO_BLOBS, Blobs, whole
from coditect.broker.port import Broker, Consumer, Delivery, tell
from coditect.broker.topology import INBOX_LOOK_SECONDS, reply_queue
from coditect.errors import (
    CoditectError,
    InputError,
    InvalidTask,
    Overloaded,
    ResultTimeout,
    StreamRestarted,
    TooLarge,
    Unroutable,
)
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Task
from coditect.telemetry.metrics import REPLIES_STRAY, MemoryMetrics, Metrics
from coditect.telemetry.tracing import NO_TRACING, SKIPPED, Tracing, begin_publish, ended_with
from coditect.wire import control_messages, routing
from coditect.wire.routing import pinned_message
from coditect.wire.tasks import MAX_BODY_BYTES, PART_TYPE, Credit, Part, read_part, read_result, task_message

log = logging.getLogger(__name__)

REPLY_PREFETCH = 1_000
MAX_KNOWN_INBOXES = 10_000
WITHDRAW_SECONDS = 10.0
_TOKEN_BYTES = 16
_DRAWN_AT_ONCE = 256


def tokens() -> Iterator[str]:
    """Return an endless iterator of correlation ids that cannot be guessed: 128 random bits of the operating system."""
    return chain.from_iterable(iter(_drawn, None))


def _drawn() -> list[str]:
    width = 2 * _TOKEN_BYTES
    drawn = os.urandom(_DRAWN_AT_ONCE * _TOKEN_BYTES).hex()
    return [drawn[at : at + width] for at in range(0, len(drawn), width)]


class Requests:
    """The tasks that a process sends with a return address, and their replies; `async with` opens the reply queue."""

    def __init__(
        self,
        broker: Broker,
        *,
        name: str,
        reply_to: str = "",
        blobs: Blobs = NO_BLOBS,
        metrics: Metrics | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.broker = broker
        """The broker of the process."""
        self.name = name
        """The name of the process: an agent's id, or a client's name."""
        self.tracing = tracing
        """The tracing of the process."""
        self.blobs = blobs
        """The blob store for bodies over the inline limit, for makers of tasks and readers of outcomes."""
        self.reply_to = reply_to or f"reply.{name}"
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._streams: WeakValueDictionary[str, PartReader] = WeakValueDictionary()
        """The readers of streamed results, by correlation id; each lives as long as its task's handle."""
        self._consumer: Consumer | None = None
        self.new_token = partial(next, tokens())
        """Return a fresh random correlation id for the next request."""
        self._looked_at: dict[AgentId, float] = {}
        """The event loop's time at which each agent's inbox queue was last seen."""
        self.metrics = metrics or MemoryMetrics()
        """The metrics of the process."""
        self.strays = self.metrics.counter(REPLIES_STRAY)

    async def __aenter__(self) -> Self:
        await self.broker.declare(reply_queue(self.reply_to))
        self._consumer = await self.broker.consume(
            self.reply_to, self._replied, prefetch=REPLY_PREFETCH, group="replies"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._consumer is not None:
            await self._consumer.cancel()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    def expect(self, correlation_id: str) -> asyncio.Future[Outcome]:
        """Return the future of the reply with a correlation id, the same for all callers until the reply comes."""
        future = self._waiting.get(correlation_id)
        if future is None:
            future = self._waiting[correlation_id] = asyncio.get_running_loop().create_future()
        return future

    def expect_parts(self, task: Task) -> PartReader:
        """Return the reader of a streamed task's parts, which gets parts for as long as the reader is referenced."""
        reader = PartReader(self.broker, self.blobs, task.id or TaskId(""))
        self._streams[task.correlation_id or ""] = reader
        return reader

    def forget(self, correlation_id: str) -> None:
        """Cancel the future of the reply with a correlation id, so that a later reply is dropped."""
        future = self._waiting.pop(correlation_id, None)
        if future is not None:
            future.cancel()

    def _replied(self, delivery: Delivery) -> None:
        message = delivery.message
        if message.type == PART_TYPE:
            self._part_arrived(message)
            delivery.ack()
            return
        future = self._waiting.pop(message.correlation_id or "", None)
        if future is None or future.done():
            self.strays.value += 1
        else:
            try:
                future.set_result(read_result(message))
            except InvalidTask as error:
                log.warning("A reply was not readable", extra={"reason": str(error)})
                future.set_exception(error)
        delivery.ack()

    def _part_arrived(self, message: Message) -> None:
        reader = self._streams.get(message.correlation_id or "")
        if reader is None:
            self.strays.value += 1
            return
        try:
            reader.arrived(message)
        except InvalidTask as error:
            log.warning("A part was not readable", extra={"reason": str(error)})

    def send(
        self, task: Task, *, timeout_seconds: float, pin: AgentId | None = None, wait_when_full: bool = True
    ) -> Awaitable[None]:
        """Publish a task for any agent, or if possible for agent `pin`; the awaitable ends with the broker's confirm.

        A pinned task goes to that agent's inbox, and at once to the capability's queue when the inbox is gone or full.
        With `wait_when_full=False` a full queue of the capability is an error at once, else when the time is over.
        Raises, at the call or when awaited:

        Raises:
            TooLarge: when the body is over the inline limit.
            Unroutable: when no agent offers the capability.
            CoditectError: any other error of `publish`.
        """
        if len(task.body) > MAX_BODY_BYTES:
            raise TooLarge("The body is over the inline limit", bytes=len(task.body), limit=MAX_BODY_BYTES)
        routing_key, span = f"{task.capability}.{task.priority}", None  # as `routing.key_of` does, without a call
        if self.tracing.active:
            span = begin_publish(self.tracing, task, exchange=routing.SUBMIT, routing_key=routing_key)
        message = task_message(task, first=True, trace=None if span is SKIPPED else span)
        if pin is not None:
            sent: Awaitable[None] = self._send_pinned(message, task, pin, timeout_seconds, wait_when_full)
        else:
            sent = self.broker.publish(
                message,
                exchange=routing.SUBMIT,
                routing_key=routing_key,
                timeout_seconds=timeout_seconds,
                wait_when_full=wait_when_full,
            )
        return sent if span is None or not span.sampled else ended_with(span, sent)

    async def withdraw(self, task: Task) -> None:
        """Ask all agents, at most once, to cancel a task that this process sent and whose requester has ended."""
        reason = "who asked for it has ended"
        message = control_messages.cancel(task.id or "", reason=reason, correlation_id=task.correlation_id)
        try:
            await tell(self.broker, message, within_seconds=WITHDRAW_SECONDS)
        except CoditectError as error:
            log.info("A request could not be withdrawn", extra={"task_id": task.id, "reason": str(error)})

    async def _send_pinned(
        self, message: Message, task: Task, pin: AgentId, timeout_seconds: float, wait_when_full: bool
    ) -> None:
        if await self._has_inbox(pin):
            with suppress(Unroutable, Overloaded):
                await self.broker.publish(
                    pinned_message(message, task),
                    exchange=routing.AGENTS,
                    routing_key=pin,
                    timeout_seconds=timeout_seconds,
                    wait_when_full=False,
                )
                return
        await self.broker.publish(
            message,
            exchange=routing.SUBMIT,
            routing_key=routing.key_of(task),
            timeout_seconds=timeout_seconds,
            wait_when_full=wait_when_full,
        )

    async def _has_inbox(self, pin: AgentId) -> bool:
        """Tell whether an agent's inbox exists; a yes is reused for a time, shorter than an unused inbox lives."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at.get(pin, -INBOX_LOOK_SECONDS) < INBOX_LOOK_SECONDS:
            return True
        if await self.broker.stats(routing.inbox_queue(pin)) is None:
            self._looked_at.pop(pin, None)
            return False
        if len(self._looked_at) >= MAX_KNOWN_INBOXES:
            self._looked_at.clear()
        self._looked_at[pin] = now
        return True


# The reader's side of a streamed result: the parts in order, without repeats, and at most 64 ahead of the reader.
#
# The agent sends at most so many parts ahead as the reader has given credit for, so that a slow reader holds up the
# agent and fills neither the broker nor itself. Parts wait in the process's reply queue, which keeps its name over
# reconnects: after a lost connection the reading goes on with the next part.

AHEAD = 64
"""How many parts an agent may send ahead of the reader."""
CREDIT_SECONDS = 10.0
LATE_SECONDS = 10.0
"""How long parts may still arrive after the task's outcome, which the agent sends last."""


class PartReader:
    """The reader of the parts of one streamed task, which orders the parts that arrive and drops repeated ones.

    Another execution of the task, after a failure or the loss of an agent, begins its parts again from the first one.
    """

    def __init__(self, broker: Broker, blobs: Blobs, task_id: TaskId) -> None:
        self._broker = broker
        self._blobs = blobs
        self._task_id = task_id
        self._first: Part | None = None
        """A part of the execution that is read: it names the execution, the attempt and the agent."""
        self._left: set[str] = set()
        """The executions that are not read any more."""
        self._held: dict[int, Part] = {}
        """The parts that arrived and were not handed out, by number; fewer than AHEAD."""
        self._next = 0
        """The number of the part to hand out next."""
        self._until = AHEAD
        """The number up to which the agent may send parts."""
        self._total: int | None = None
        """How many parts the execution has; None before its end."""
        self._lost: int | None = None
        """How many parts were handed out of an execution that another one has replaced; None when there is none."""
        self._turn: asyncio.Future[None] | None = None

    def arrived(self, message: Message) -> None:
        """Handle an arrived message: a part of the result, the end of the parts, or a notice that the agent waits.

        The agent waits when it has sent all parts that the reader allowed; its notice makes the reader allow more.

        Raises:
            InvalidTask: when the message is no part.
        """
        part = read_part(message)
        if not self._is_read(part):
            return
        if part.last:
            self._total = part.number
        elif not part.body:
            self._give_credit()  # the agent waits: the last credit may be lost
        elif self._next <= part.number < self._until:
            self._held[part.number] = part
        self._wake()

    def _is_read(self, part: Part) -> bool:
        """Tell whether a part is of the execution being read, or of a newer one, which is then read in its place."""
        first = self._first
        if first is not None and first.execution == part.execution:
            return True
        if part.execution in self._left or (first is not None and part.attempt < first.attempt):
            return False
        if first is not None:
            self._left.add(first.execution)
            if self._next and self._lost is None:
                self._lost = self._next
            self._held.clear()
            self._next, self._until, self._total = 0, AHEAD, None
        self._first = part
        return True

    async def next(self, reply: asyncio.Future[Outcome], *, timeout_seconds: float) -> bytes | None:
        """Wait for the result's next part; return its JSON, or None if all were read or the task ended without a value.

        Raises:
            StreamRestarted: when another execution has begun the parts again; the next call returns its first part.
            ResultTimeout: when no part came in time, or parts are missing at the end.
            InputError: when the task's handler does not yield its result, or the parts are being read already.
            CoditectError: the errors of `Blobs.get`, for a part over the inline limit.
        """
        if self._turn is not None:
            raise InputError("The parts of this task are read already", task_id=self._task_id, fix="read them once")
        until = asyncio.get_running_loop().time() + timeout_seconds
        late = until
        while not (part := self._ready()) and not self._ended(reply):
            now = asyncio.get_running_loop().time()
            if reply.done():
                late = min(late, now + LATE_SECONDS)
            if now >= late:
                raise self._missing(reply)
            await self._woken(reply, late - now)
        if part is None:
            return None
        body = await whole(self._blobs, part.body) if part.claims else part.body
        if self._held.pop(part.number, None) is part:  # else another execution began meanwhile
            self._next += 1
            if self._until - self._next <= AHEAD // 2 and not reply.done():
                self._give_credit()
        return body

    def _ready(self) -> Part | None:
        """Return the next part of the streamed result if it has arrived, else None.

        Raises:
            StreamRestarted: when it is the part of another execution than the one before.
        """
        if self._lost is not None and self._first is not None:
            lost, self._lost = self._lost, None
            raise StreamRestarted(
                "The task is executed again, and its parts begin again",
                task_id=self._task_id,
                attempt=self._first.attempt,
                agent=self._first.agent_id,
                read=lost,
                fix="drop the parts that were read, and call stream() again",
            )
        return self._held.get(self._next)

    def _ended(self, reply: asyncio.Future[Outcome]) -> bool:
        if self._total is not None and self._next >= self._total:
            return True
        if not reply.done():
            return False
        if reply.cancelled() or reply.exception() is not None or reply.result().failure is not None:
            return True
        if self._first is None:
            fix = "await handle.result(), which has its value"
            raise InputError("This task's handler returns its result as a whole", task_id=self._task_id, fix=fix)
        return False

    def _missing(self, reply: asyncio.Future[Outcome]) -> ResultTimeout:
        if not reply.done():
            return ResultTimeout("No part came in time; the task goes on", task_id=self._task_id, read=self._next)
        fix = "submit the task again; the broker lost its reply queue"
        return ResultTimeout("Parts of the result are missing", task_id=self._task_id, read=self._next, fix=fix)

    def _give_credit(self) -> None:
        if self._first is None:
            return
        self._until = self._next + AHEAD
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        promise.add_done_callback(self._credit_sent)
        self._broker.post(
            Credit(self._first.execution, self._until).message(),
            promise,
            exchange=routing.AGENTS,
            routing_key=routing.mailbox_key(self._first.agent_id),
            timeout_seconds=CREDIT_SECONDS,
        )

    def _credit_sent(self, promise: asyncio.Future[None]) -> None:
        error = promise.exception()
        if isinstance(error, CoditectError):  # a living agent asks again, and of a dead one another execution comes
            log.debug("A credit did not reach its agent", extra={"task_id": self._task_id, "reason": str(error)})
        elif error is not None:
            raise error

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def _woken(self, reply: asyncio.Future[Outcome], seconds: float) -> None:
        self._turn = asyncio.get_running_loop().create_future()
        waits: list[asyncio.Future[Any]] = [self._turn] if reply.done() else [self._turn, reply]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._turn = None
