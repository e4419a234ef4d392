"""The direct lane of a client: each task goes straight through the broker to any agent with the capability."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from coditect.aio.backoff import Backoff
from coditect.aio.clock import Clock
from coditect.broker.port import Broker
from coditect.client.handle import Handle
from coditect.client.options import Options, deadline_at
from coditect.codec import encode_any
from coditect.errors import CoditectError, ControlPlaneRequired, Overloaded, Unroutable
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.parts import AHEAD
from coditect.messaging.rpc import Requests
from coditect.model.duration import Duration, seconds
from coditect.model.result import Outcome
from coditect.model.task import NO_LIMITS, Limits, Task
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.registry.selection.selector import Pick, Selector
from coditect.wire.tasks import MAX_BODY_BYTES

LONGEST_DIRECT_TIMEOUT_SECONDS = 25 * 60.0
BURST = 16
FULL_SECONDS = 2.0
"""How long a single submit is repeated while the queue is full; `submit_many` waits longer, for each of its tasks."""
RETRY_AFTER_SECONDS = 2.0
"""The least time after which a refused submitter should come back; at most twice that, drawn at random."""
BACKOFF = Backoff(0.02, 0.5)
MOST_WINDOW_BYTES = 16 * 1024 * 1024
"""The size of bodies that a batch holds in memory before they are sent; one more body may exceed it."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A task on its way to the broker, with its handle and the awaitable of the broker's confirm."""

    handle: Handle
    task: Task
    confirm: Awaitable[None]
    timeout_seconds: float
    """How long the task may wait for the broker, each time it is sent."""


class DirectLane:
    """The direct lane of one client, which publishes tasks straight to the capabilities' queues."""

    def __init__(
        self,
        broker: Broker,
        clock: Clock,
        *,
        selector: Selector,
        catalogue: CapabilityCatalogue,
        requests: Requests,
        event_stream: EventStreams,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._selector = selector
        self._catalogue = catalogue
        self._requests = requests
        self._event_stream = event_stream

    async def submit(self, capability: str, body: bytes, options: Options) -> Handle:
        """Publish one direct task, again for up to 2 s while its queue is full; return its handle after the confirm."""
        claims = None if len(body) <= MAX_BODY_BYTES else await self._put(body)
        size = len(body) if claims is None else None
        pick = await self._selector.pick(capability, options.strategy, options.wanted, body_bytes=size, pin=options.pin)
        sending = self._begin(capability, body, options, pick, claims)
        await self._taken(sending, sending.confirm, min(FULL_SECONDS, sending.timeout_seconds))
        return sending.handle

    async def submit_many(
        self, capability: str, values: Iterable[Any], options: Options, *, concurrency: int
    ) -> AsyncGenerator[Handle, None]:
        """Publish a direct task for each value; yield the handles in order, each once the broker confirmed its task."""
        picks = self._selector.batch(capability, options.strategy, options.wanted, pin=options.pin, many=concurrency)
        source = iter(values)
        under_way: deque[tuple[_Sending, asyncio.Future[None]]] = deque()
        patience = seconds(options.submit_timeout)
        try:
            while bodies := encoded(source, concurrency):
                for body in bodies:
                    claims = await self._put(body) if len(body) > MAX_BODY_BYTES else None
                    pick = await picks.next(len(body) if claims is None else None)
                    sending = self._begin(capability, body, options, pick, claims)
                    under_way.append((sending, asyncio.ensure_future(sending.confirm)))
                    if len(under_way) >= concurrency:
                        yield await self._first(under_way, patience)
                    elif len(under_way) % BURST == 0:
                        await asyncio.sleep(0)  # what was submitted so far leaves while the rest is prepared
            while under_way:
                yield await self._first(under_way, patience)
        except Exception:  # also of the iterable that the values come from
            while under_way:
                try:
                    handle = await self._first(under_way, 0.0)
                except CoditectError:
                    continue  # the first failure is the one that is told
                yield handle
            raise
        finally:
            for sending, confirm in under_way:
                confirm.cancel()
                sending.handle.forget()

    async def _put(self, body: bytes) -> bytes:
        return (await self._requests.blobs.put(body)).document

    async def _first(self, under_way: deque[tuple[_Sending, asyncio.Future[None]]], patience_seconds: float) -> Handle:
        """Await the confirm of the oldest sent task; if its queue is full, send it again for a time; return its handle.

        No further task is sent meanwhile.
        """
        sending, confirm = under_way.popleft()
        if not confirm.done() or confirm.cancelled() or confirm.exception() is not None:
            await self._taken(sending, confirm, patience_seconds)
        return sending.handle

    def _begin(
        self, capability: str, body: bytes, options: Options, pick: Pick | None, claims: bytes | None
    ) -> _Sending:
        """Send a task, with a blob reference for a large input; return its handle and the awaitable of the confirm."""
        task, reply = self._task(capability, body if claims is None else claims, options, claims)
        parts = self._requests.expect_parts(task) if options.stream else None
        handle = Handle(task, self._requests, self._event_stream, self._broker, reply, parts)
        if pick is not None and reply is not None:
            reply.add_done_callback(pick.over)
        try:
            pin = None if pick is None else pick.agent_id
            timeout_seconds = seconds(options.submit_timeout)
            sent = self._requests.send(task, timeout_seconds=timeout_seconds, pin=pin, wait_when_full=False)
        except BaseException:
            handle.forget()
            raise
        return _Sending(handle, task, sent, timeout_seconds)

    async def _taken(self, sending: _Sending, confirm: Awaitable[None], patience_seconds: float) -> None:
        """Await the confirm of a task; if its queue is full, send it again until `patience_seconds` are over.

        Raises:
            Overloaded: when the queue was full all the time; the error says when to submit again.
        """
        handle = sending.handle
        try:
            try:
                await confirm
            except Overloaded as refused:
                await self._send_again(sending, refused, patience_seconds)
        except Unroutable as error:
            handle.forget()
            raise await self._catalogue.unknown(
                handle.capability, routing_key=error.facts.get("routing_key")
            ) from error
        except BaseException:
            handle.forget()
            raise

    async def _send_again(self, sending: _Sending, refused: Overloaded, patience_seconds: float) -> None:
        loop, task = asyncio.get_running_loop(), sending.task
        until = loop.time() + patience_seconds
        for longest in BACKOFF.pauses():
            pause = longest * (1 + self._clock.chance()) / 2
            if loop.time() + pause >= until:
                break
            await asyncio.sleep(pause)
            try:
                await self._requests.send(task, timeout_seconds=sending.timeout_seconds, wait_when_full=False)
            except Overloaded as error:
                refused = error
            else:
                return
        raise Overloaded(
            "The broker takes no more tasks of this capability and priority for now",
            capability=task.capability,
            priority=task.priority.value,
            retry_after=round(RETRY_AFTER_SECONDS * (1 + self._clock.chance()), 1),
            fix="submit again after retry_after seconds, or use submit_many, which slows down by itself",
        ) from refused

    def _task(
        self, capability: str, body: bytes, options: Options, claims: bytes | None
    ) -> tuple[Task, asyncio.Future[Outcome] | None]:
        """Return a new task, and the future of its reply; None in its place when the options want no results."""
        if options.timeout is not None and seconds(options.timeout) > LONGEST_DIRECT_TIMEOUT_SECONDS:
            raise ControlPlaneRequired(
                "A direct task runs at most 25 minutes",
                timeout=options.timeout,
                fix="make it durable: submit(..., durable=True), or `coditect task submit --detach`",
            )
        now = self._clock.now_ms()
        task_id, limits = options.task_id or self._clock.new_id(), _limits(options, now)
        correlation_id, reply = self._requests.begin() if options.results else (None, None)
        task = Task(
            capability,
            options.priority,
            body,
            id=task_id,
            correlation_id=correlation_id,
            reply_to=self._requests.reply_to if options.results else None,
            limits=limits,
            published_at_ms=now,
            claims=claims,
            headers=options.headers,
            stream=AHEAD if options.stream else 0,
        )
        return task, reply


def encoded(source: Iterator[Any], most: int) -> list[bytes]:
    """Return the JSON bodies of the iterator's next values: at most `most`, and fewer when the bodies are large.

    Raises:
        InvalidTask: when a value cannot be written as JSON.
    """
    bodies: list[bytes] = []
    size = 0
    for value in islice(source, most):
        bodies.append(encode_any(value))
        size += len(bodies[-1])
        if size >= MOST_WINDOW_BYTES:
            break
    return bodies


def _limits(options: Options, now_ms: int) -> Limits:
    if options.deadline is options.start_within is options.timeout is options.max_attempts is None:
        return NO_LIMITS
    return Limits(
        deadline_ms=None if options.deadline is None else deadline_at(options.deadline, now_ms),
        start_by_ms=_later(now_ms, options.start_within),
        timeout_ms=None if options.timeout is None else int(seconds(options.timeout) * 1000),
        max_attempts=options.max_attempts,
    )


def _later(now_ms: int, span: Duration | None) -> int | None:
    return None if span is None else now_ms + int(seconds(span) * 1000)
