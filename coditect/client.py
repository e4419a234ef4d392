"""The client: submit a task, wait for its result, listen to events, talk to the fleet."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from coditect.agent.typed import encode_any
from coditect.background import Background
from coditect.blob import NO_BLOBS, Blobs, open_blobs
from coditect.broker.port import Broker
from coditect.broker.topology import backbone
from coditect.clock import Clock, SystemClock
from coditect.errors import (
    CoditectError,
    ControlPlaneRequired,
    InputError,
    Overloaded,
    RegistryUnavailable,
    UnknownCapability,
    Unroutable,
)
from coditect.handle import Handle
from coditect.listening import EventStream, Listening
from coditect.model import mail, routing
from coditect.model.capability import Priority, check_capability_name, nearest_names
from coditect.model.claim import Claim
from coditect.model.duration import Duration, seconds
from coditect.model.event import Event, event_message
from coditect.model.ids import AgentId
from coditect.model.task import NO_LIMITS, Limits, Task
from coditect.model.wire import MAX_BODY_BYTES
from coditect.options import SUBMIT_SECONDS, Options
from coditect.picking import Pick, Picker
from coditect.registry.port import Registry
from coditect.requests import Requests
from coditect.settings import Settings, read_settings
from coditect.sync import SyncContext, handing, handing_many, listening, waiting

log = logging.getLogger(__name__)

LONGEST_DIRECT_TIMEOUT_SECONDS = 25 * 60.0
DEFAULT_CONCURRENCY = 500
BURST = 16


class _Sync:
    """`Client.sync()` is for the servers of the environment, `client.sync()` for those of this client."""

    def __get__(self, client: Client | None, kind: type[Client]) -> Callable[[], SyncClient]:
        def sync() -> SyncClient:
            """The same client for code without an event loop; not opened yet.

            `with Client.sync() as client: client.submit(...).result()`. See `SyncClient`.
            """
            return SyncClient(kind.from_env() if client is None else client)

        return sync


class Client:
    """A process's way into the fleet. `async with` opens and closes it; safe to share between tasks."""

    sync = _Sync()

    def __init__(
        self,
        broker: Broker,
        registry: Registry | None = None,
        *,
        clock: Clock | None = None,
        quorum_replies: bool = False,
        name: str | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        """The name, of its reply queue and events, is a fresh one unless it is given."""
        self._broker = broker
        self._registry = registry
        self._clock = clock or SystemClock()
        self.name = name or f"client-{token_hex(6)}"
        self._stack = AsyncExitStack()
        self._background = Background()
        self._picker = Picker(registry, self._clock, self._background)
        self._requests = Requests(broker, name=self.name, quorum=quorum_replies, blobs=blobs)
        self._listening = Listening(broker, name=self.name)
        self._owned: tuple[Any, ...] = ()

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Client:
        """A client for the servers that the environment (or the nearest `.coditect/env`) names.

        Raises: SetupError for a setting outside its range.
        """
        settings = read_settings({**os.environ, **environment} if environment is not None else None)
        return cls.connecting(settings)

    @classmethod
    def connecting(cls, settings: Settings) -> Client:
        """A client that opens and closes its own connections."""
        from coditect.client_program import adapters  # noqa: PLC0415 - the composition root imports the adapters

        broker, registry = adapters(settings)
        blobs = open_blobs(settings.blob_url, most_bytes=settings.blob_max_bytes)
        client = cls(broker, registry, quorum_replies=settings.reply_queue == "quorum", blobs=blobs)
        client._owned = (broker, registry)
        return client

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            for owned in self._owned:
                await opening.enter_async_context(owned)
            await opening.enter_async_context(self._background)
            await self._broker.declare(backbone())
            opening.push_async_callback(self._remove_reply_queue)
            await opening.enter_async_context(self._requests)
            self._stack = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _remove_reply_queue(self) -> None:
        try:
            await self._broker.delete_queue(self._requests.reply_to)
        except CoditectError as error:
            log.debug("A reply queue is left to expire", extra={"reason": str(error)})

    # -- tasks ------------------------------------------------------------------------------------------

    async def submit(
        self,
        capability: str,
        value: Any = None,
        *,
        options: Options | None = None,
        priority: Priority | None = None,
        timeout: Duration | None = None,
        deadline: Duration | None = None,
        pin: AgentId | None = None,
        idempotency_key: str | None = None,
    ) -> Handle:
        """Publishes a task; returns when the broker has it: from then on it is not lost.

        `value` is anything JSON, pydantic or a dataclass can say, or bytes that are JSON already. The
        keywords are shorthands for the fields of `Options`.

        Raises: UnknownCapability (with the nearest names), TooLarge, InvalidTask; Overloaded,
        BrokerUnavailable, BlobUnavailable (nothing was taken, retryable); PublishUnconfirmed (unknown, retryable);
        ControlPlaneRequired for what needs a memory.
        """
        given = options or Options()
        chosen = Options(
            priority=priority or given.priority,
            timeout=timeout if timeout is not None else given.timeout,
            deadline=deadline if deadline is not None else given.deadline,
            start_within=given.start_within,
            pin=pin or given.pin,
            strategy=given.strategy,
            wanted=given.wanted,
            max_attempts=given.max_attempts,
            results=given.results,
            idempotency_key=idempotency_key or given.idempotency_key,
            submit_timeout=given.submit_timeout,
        )
        body = encode_any(value)
        carried = body if len(body) <= MAX_BODY_BYTES else await self._requests.blobs.put(body)
        pick = await self._picker.pick(capability, chosen.strategy, chosen.wanted, pin=chosen.pin)
        handle, sent = self._begin(capability, carried, chosen, pick)
        await self._taken(handle, sent)
        return handle

    def _begin(
        self, capability: str, carried: bytes | Claim, options: Options, pick: Pick | None
    ) -> tuple[Handle, Awaitable[None]]:
        """Sends a task with this input, or the claim of it; `_taken` waits until the broker has it."""
        task = self._task(capability, carried, options)
        reply = self._requests.expect(task.id or "") if options.results else None
        handle = Handle(task, reply, self._requests, self._listening, self._broker)
        if pick is not None and reply is not None:
            reply.add_done_callback(pick.over)
        try:
            pin = None if pick is None else pick.agent_id
            sent = self._requests.send(task, timeout_seconds=seconds(options.submit_timeout), pin=pin)
        except BaseException:
            handle.forget()
            raise
        return handle, sent

    async def _taken(self, handle: Handle, sent: Awaitable[None]) -> None:
        try:
            await sent
        except Unroutable as error:
            handle.forget()
            raise await self._unknown(handle.capability, error) from error
        except BaseException:
            handle.forget()
            raise

    def _task(self, capability: str, carried: bytes | Claim, options: Options) -> Task:
        check_capability_name(capability)
        self._refuse_what_needs_a_memory(options)
        now = self._clock.now_ms()
        task_id = self._clock.new_id()
        body, claim = (carried, None) if isinstance(carried, bytes) else (carried.document, carried)
        return Task(
            capability,
            options.priority,
            body,
            id=task_id,
            correlation_id=task_id if options.results else None,
            reply_to=self._requests.reply_to if options.results else None,
            limits=_limits(options, now),
            published_at_ms=now,
            claim=claim,
        )

    @staticmethod
    def _refuse_what_needs_a_memory(options: Options) -> None:
        if options.idempotency_key is not None:
            raise ControlPlaneRequired(
                "An idempotency key needs a control plane that remembers it",
                fix="run a dispatcher, or give the effect itself the task's id as its key",
            )
        if options.timeout is not None and seconds(options.timeout) > LONGEST_DIRECT_TIMEOUT_SECONDS:
            raise ControlPlaneRequired(
                "A direct task runs at most 25 minutes",
                fix="split the work; longer tasks need a control plane, which this release has not",
            )

    async def _unknown(self, capability: str, error: Unroutable) -> InputError:
        known: frozenset[str] = frozenset()
        if self._registry is not None:
            try:
                known = await self._registry.capabilities()
            except RegistryUnavailable as silent:
                log.debug("The nearest names are unknown", extra={"reason": str(silent)})
        return UnknownCapability(
            "Nobody offers this capability",
            capability=capability,
            routing_key=error.facts.get("routing_key"),
            nearest=nearest_names(capability, known),
            fix="start an agent that declares it: coditect agent run FILE",
        )

    async def submit_many(
        self,
        capability: str,
        values: Iterable[Any],
        *,
        options: Options | None = None,
        priority: Priority | None = None,
        results: bool | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> AsyncIterator[Handle]:
        """Submits each value, at most `concurrency` unconfirmed at once; yields the handles in order.

        With a strategy the agents are assigned in batches of that size: none gets more than it can take, what
        is over the broker balances.

        With `results=False` nothing comes back: fire and forget, as safe as any other submit. Raises what
        `submit` raises at the value that failed; what was yielded before it is taken.
        """
        chosen = options or Options()
        if priority is not None or results is not None:
            chosen = replace(
                chosen, priority=priority or chosen.priority, results=chosen.results if results is None else results
            )
        picks = self._picker.batch(capability, chosen.strategy, chosen.wanted, pin=chosen.pin, many=concurrency)
        under_way: deque[tuple[Handle, asyncio.Future[None]]] = deque()
        try:
            for number, value in enumerate(values, 1):
                body = encode_any(value)
                carried = body if len(body) <= MAX_BODY_BYTES else await self._requests.blobs.put(body)
                handle, sent = self._begin(capability, carried, chosen, await picks.next())
                under_way.append((handle, asyncio.ensure_future(sent)))
                if len(under_way) >= concurrency:
                    yield await self._first(under_way)
                elif number % BURST == 0:
                    await asyncio.sleep(0)  # what was submitted so far leaves while the rest is prepared
            while under_way:
                yield await self._first(under_way)
        finally:
            for handle, sent in under_way:
                sent.cancel()
                handle.forget()

    async def _first(self, under_way: deque[tuple[Handle, asyncio.Future[None]]]) -> Handle:
        handle, sent = under_way.popleft()
        if not sent.done() or sent.cancelled() or sent.exception() is not None:
            await self._taken(handle, sent)
        return handle

    async def request(
        self,
        capability: str,
        value: Any = None,
        model: Any = Any,
        *,
        timeout: Duration = "5m",
        options: Options | None = None,
    ) -> Any:
        """Submits and waits: the value, or the failure as an error. See `submit` and `Handle.result`.

        After `timeout` nobody wants the result any more: it is the task's deadline, too.
        """
        handle = await self.submit(capability, value, options=options, deadline=timeout)
        return await handle.result(model, timeout=timeout)

    async def cancel(self, task_id: str, *, reason: str = "") -> None:
        """Asks whoever has the task to cancel it; best effort, remembered by the fleet for ten minutes."""
        await self._broadcast(mail.cancel(task_id, reason=reason))

    # -- the fleet --------------------------------------------------------------------------------------

    async def broadcast(self, topic: str, data: Any = None, *, exclude: Iterable[AgentId | str] = ()) -> None:
        """Tells every agent but the excluded ones (ids or names); at most once each, no answer."""
        await self._broadcast(mail.broadcast(topic, data, excluded=tuple(exclude)))

    async def _broadcast(self, letter: Any) -> None:
        try:
            await self._broker.publish(
                letter, exchange=routing.BROADCAST, routing_key="", timeout_seconds=SUBMIT_SECONDS
            )
        except Unroutable:
            log.info("No agent is there to hear a broadcast")

    async def emit(self, /, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publishes an event; whoever listens gets it, and it is no error when nobody does."""
        event = Event(type_, f"/clients/{self.name}", self._clock.new_id(), self._clock.now_ms(), subject, data)
        try:
            await self._broker.publish(
                event_message(event),
                exchange=routing.EVENTS,
                routing_key=type_,
                timeout_seconds=SUBMIT_SECONDS,
                wait_when_full=False,
            )
        except (Unroutable, Overloaded):
            log.debug("Nobody listens to an event", extra={"event_type": type_})

    def events(self, pattern: str = "#") -> EventStream:
        """Events whose type matches the topic pattern (`task.*`, `agent.online`, `#`).

        `async with client.events("task.*") as events: async for event in events`. What happens after the
        block was entered is heard; a listener more than 10,000 events behind misses the oldest.
        """
        return self._listening.stream(pattern)


def _limits(options: Options, now_ms: int) -> Limits:
    if options.deadline is options.start_within is options.timeout is options.max_attempts is None:
        return NO_LIMITS
    return Limits(
        deadline_ms=_later(now_ms, options.deadline),
        start_by_ms=_later(now_ms, options.start_within),
        timeout_ms=None if options.timeout is None else int(seconds(options.timeout) * 1000),
        max_attempts=options.max_attempts,
    )


class SyncClient(SyncContext[Client]):
    """The client for code without an event loop: scripts, notebooks, threads. Made by `Client.sync`.

    `with` opens and closes it; in a notebook, `open()` and `close()`. Safe to share between threads. Each call
    waits; Ctrl-C ends the wait at once, and the client stays usable. A coroutine must not call it: it would
    hold up its event loop.

    Raises, beside what the methods of `Client` raise: SetupError before it is open, after it was closed, and
    after a fork.
    """

    @property
    def name(self) -> str:
        """What the fleet knows this client by."""
        return self._inner.name

    submit = handing(Client.submit)
    submit_many = handing_many(Client.submit_many)
    request = waiting(Client.request)
    cancel = waiting(Client.cancel)
    broadcast = waiting(Client.broadcast)
    emit = waiting(Client.emit)
    events = listening(Client.events)


def _later(now_ms: int, span: Duration | None) -> int | None:
    return None if span is None else now_ms + int(seconds(span) * 1000)
