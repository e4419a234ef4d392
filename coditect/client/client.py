"""The `Client`: submits tasks, starts workflows, listens to events, and sends broadcasts to the agents."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from coditect.aio.clock import Clock, SystemClock
from coditect.aio.loop import HomeLoop, at_home
from coditect.aio.supervisor import Supervisor
from coditect.blobs import NO_BLOBS, Blobs, open_blobs
from coditect.broker.port import Broker
from coditect.broker.topology import base_topology
from coditect.client.completion import Completions
from coditect.client.coordination.kept import ClientCoordination
from coditect.client.direct import DirectLane
from coditect.client.durable import workflow_of
from coditect.client.handle import Handle
from coditect.client.listings import ClientListings
from coditect.client.options import NONE_FIELDS, SUBMIT_SECONDS, OptionFields, Options, RequestKey, nearest_option
from coditect.client.workflow_run import Run
from coditect.client.workflows import Progress, WorkflowLane
from coditect.codec import encode_any
from coditect.collaboration.state import LONGEST_NAME_BYTES, SharedState, StateRequests
from coditect.errors import CoditectError, InputError, Overloaded, ResultTimeout, SetupError, Unroutable
from coditect.messaging.event_stream import EventStream, EventStreams
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.capability import check_capability_name
from coditect.model.duration import Duration
from coditect.model.event import Event
from coditect.model.ids import AgentId
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.registry.port import Registry
from coditect.registry.selection.selector import Selector
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.tracing.choose import open_tracing
from coditect.telemetry.tracing.port import NO_TRACING, Tracing
from coditect.wire import control_messages, routing
from coditect.wire.events import check_event, event_message
from coditect.wire.state import named_space
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition

if TYPE_CHECKING:
    from coditect import SyncClient

log = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 500
MOST_CONCURRENCY = 100_000
NO_OPTIONS = Options()


def _chosen(options: Options | None, fields: OptionFields) -> Options:
    """Return submit options in which the given keyword arguments replace the fields of `options`.

    Raises:
        InputError: when `options` is no `Options`, a keyword is unknown, or a value is wrong; names the parameter.
    """
    if options is not None and not isinstance(options, Options):
        arguments.refuse("options", "These are no options", options, "coditect.Options(...)")
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None or name in NONE_FIELDS}
    if unknown := given.keys() - OptionFields.__annotations__.keys():
        name = min(unknown)
        arguments.refuse(name, "A submit has no such parameter", given[name], nearest_option(name))
    return replace(options or NO_OPTIONS, **given) if given else options or NO_OPTIONS


class Client(ClientCoordination, ClientListings):
    """The object by which a process submits tasks and starts workflows; asyncio tasks may share it.

    `async with` opens and closes the client, which belongs to that event loop: every use in another loop or thread, or
    outside of the block, is a `SetupError`.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry | None = None,
        *,
        clock: Clock | None = None,
        name: str | None = None,
        blobs: Blobs = NO_BLOBS,
        metrics: Metrics | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Take a broker and a registry; `name`, random by default, names the client's reply queue and its events."""
        self._home = HomeLoop()
        self._broker = broker = at_home(broker, self._home)
        self._registry = registry = None if registry is None else at_home(registry, self._home)
        self._clock = clock or SystemClock()
        self.name = name or f"client-{token_hex(6)}"
        self._stack, self._background = AsyncExitStack(), Supervisor()
        self._selector = Selector(registry, self._clock, self._background, metrics)
        self._requests = Requests(broker, name=self.name, blobs=blobs, metrics=metrics, tracing=tracing)
        self._event_stream = EventStreams(broker, name=self.name)
        catalogue = CapabilityCatalogue(broker, registry)
        self._direct = DirectLane(
            broker,
            self._clock,
            selector=self._selector,
            catalogue=catalogue,
            requests=self._requests,
            event_stream=self._event_stream,
        )
        self._workflows = WorkflowLane(
            broker,
            self._clock,
            catalogue=catalogue,
            requests=self._requests,
            event_stream=self._event_stream,
            completions=Completions(self._event_stream, self._background),
        )
        self._control = self._workflows.control
        self._owned: tuple[Any, ...] = ()

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Client:
        """Return a client for the servers that the environment (or the nearest `.coditect/env`) names.

        Raises:
            SetupError: when a setting is outside its range.
        """
        settings = read_settings({**os.environ, **environment} if environment is not None else None)
        return cls.connecting(settings)

    @classmethod
    def connecting(cls, settings: Settings) -> Client:
        """Return a client that connects to the servers in the settings when opened, and disconnects when closed."""
        from coditect.client.program import adapters  # noqa: PLC0415 - the composition root imports the adapters

        broker, registry = adapters(settings)
        blobs = open_blobs(settings.blob_url, most_bytes=settings.blob_max_bytes)
        client = cls(broker, registry, blobs=blobs)
        client._requests.tracing = open_tracing(settings, service="coditect-client", instance=client.name)
        client._owned = (client._requests.tracing, broker, registry)
        return client

    def sync(*self: Client) -> SyncClient:
        """Return the blocking counterpart of this client, not opened yet, for code without an event loop.

        `with Client.sync() as client: client.submit(...).result()`. See `SyncClient`. On the class, the method makes a
        client for the servers of the environment, as `from_env` does.
        """
        from coditect import SyncClient as Blocking  # noqa: PLC0415 - it is made of this class

        (client,) = self or (Client.from_env(),)
        return Blocking(client)

    async def __aenter__(self) -> Self:
        if self._owned and self._home.was_left:
            raise SetupError("A client is opened once", fix="make a new one for each `async with`: Client.from_env()")
        self._home.enter()
        async with AsyncExitStack() as opening:
            opening.callback(self._home.leave)
            for owned in self._owned:
                await opening.enter_async_context(owned)
            await opening.enter_async_context(self._background)
            await self._broker.declare(base_topology(), lazily=True)
            opening.push_async_callback(self._remove_reply_queue)
            await opening.enter_async_context(self._requests)
            opening.push_async_callback(self._locks_released)
            self._stack = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._home.is_open:
            self._home.check()
        await self._stack.aclose()

    async def _remove_reply_queue(self) -> None:
        try:
            await self._broker.delete_queue(self._requests.reply_to)
        except CoditectError as error:
            log.debug("A reply queue is left to expire", extra={"reason": str(error)})

    # -- tasks ------------------------------------------------------------------------------------------

    async def submit(
        self, capability: str, value: Any = None, *, options: Options | None = None, **fields: Unpack[OptionFields]
    ) -> Handle:
        """Submit one task; return its handle once the broker has the task, or the control plane keeps a durable one.

        The broker has confirmed the task by then, so that it is not lost.

        `value` is anything that JSON, pydantic or a dataclass can express, or bytes, which are sent as they are: for a
        handler of bytes, or because they are JSON already. The keywords are the fields of `Options`, such as
        `priority="p0"`; they take precedence over those of `options`, also `timeout=None` and each other None that a
        field may be.

        With `durable=True`, or an `idempotency_key`, the control plane keeps the task, as a workflow of one node, and
        the call returns after the commit. A durable task survives the loss of the broker's disks, may run for hours,
        and any process can get its handle by its id (`task`). Priority, time limits and max_attempts count; a preferred
        agent does not.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter.
            UnknownCapability: when no agent offers the capability; the error names the nearest names.
            TooLarge: when the value is larger than the wire or the blob store takes.
            InvalidTask: when the value cannot be written as JSON.
            Overloaded: when too many tasks of the capability wait (`max_queued`), for 2 s, or the broker has an alarm
                until the timeout; nothing was taken, and the fact `retry_after` has the seconds to wait. Retryable.
            BrokerUnavailable: when the broker was away until the timeout; nothing was taken, retryable.
            BlobUnavailable: when a large value could not be stored; nothing was taken, retryable.
            PublishUnconfirmed: when no confirm came; the task may have been taken, retryable.
            ControlPlaneRequired: when no dispatcher answers for a durable task, or a direct task has a timeout above 25
                minutes.
        """
        chosen = _chosen(options, fields)
        check_capability_name(capability)
        body = encode_any(value)
        if chosen.kept:
            return await self._workflows.submit(capability, body, chosen)
        return await self._direct.submit(capability, body, chosen)

    async def submit_durable(
        self, capability: str, value: Any = None, *, key: str | None = None, options: Options | None = None
    ) -> Handle:
        """Submit a task with `durable=True`; the same `key` gives the same task.

        Raises:
            CoditectError: the errors of `submit`.
        """
        fields: OptionFields = {"durable": True} if key is None else {"durable": True, "idempotency_key": key}
        return await self.submit(capability, value, options=options, **fields)

    def task(self, task_id: str) -> Handle:
        """Return the handle of a durable task by its id, also when another process submitted it; sends no request yet.

        Raises:
            InputError: when the id is not that of a durable task.
        """
        return self._workflows.task(task_id)

    async def submit_many(
        self,
        capability: str,
        values: Iterable[Any],
        *,
        options: Options | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **fields: Unpack[OptionFields],
    ) -> AsyncIterator[Handle]:
        """Submit one task for each value, at most `concurrency` unconfirmed at once; yield the handles in order.

        As many values as `concurrency` are read and checked before any of them is sent. With a strategy the agents are
        assigned in batches of that size: no agent gets more than it can take, and the broker balances the rest.

        What a full queue refuses is sent again one task after another, and nothing else meanwhile: a batch slows down
        to the pace at which the agents make room, and fails only when one task finds no room within `submit_timeout`.

        With `results=False` no results come back; each submit is as safe as any other.

        Raises:
            CoditectError: the errors of `submit`, after the handles of all tasks that were taken: no task runs whose
                handle was not yielded. No value after the failed one is sent.
        """
        chosen = _chosen(options, fields)
        check_capability_name(capability)
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            arguments.refuse("values", "These are no values, one for each task", values, "a list of them")
        arguments.whole("concurrency", concurrency, 1, MOST_CONCURRENCY)
        if chosen.idempotency_key is not None or chosen.task_id is not None:
            named = "idempotency_key" if chosen.task_id is None else "task_id"
            raise InputError("This names one task", parameter=named, fix="submit each with one of its own")
        lane = self._workflows if chosen.kept else self._direct
        async with aclosing(lane.submit_many(capability, values, chosen, concurrency=concurrency)) as handles:
            async for handle in handles:
                yield handle

    async def request(
        self,
        capability: str,
        value: Any = None,
        model: Any = Any,
        *,
        timeout: Duration = "5m",
        options: Options | None = None,
    ) -> Any:
        """Submit a task, wait at most `timeout` for its result, and return the value, validated as `model`.

        After `timeout` the result is worthless: a direct task without a deadline gets it as its deadline, and a durable
        task is canceled.

        Raises:
            CoditectError: the errors of `submit` and `Handle.result`.
        """
        chosen = _chosen(options, {})
        arguments.span("timeout", timeout)
        if not chosen.kept and not chosen.results:
            arguments.refuse("options", "A request waits for the result", "results=False", "results=True, or submit")
        if chosen.stream:
            arguments.refuse(
                "options", "A request waits for the whole result", "stream=True", "submit and Handle.stream"
            )
        if not chosen.kept and chosen.deadline is None:
            chosen = replace(chosen, deadline=timeout)
        handle = await self.submit(capability, value, options=chosen)
        try:
            return await handle.result(model, timeout=timeout)
        except ResultTimeout:
            if chosen.kept:
                await handle.cancel(reason="its result is not wanted any more")
            raise
        finally:
            handle.forget()

    async def cancel(self, task_id: str, *, reason: str = "") -> None:
        """Ask the agents, or for a durable task the control plane, to cancel a task; for a direct one at best effort.

        Agents remember the cancel for ten minutes, the control plane without a limit of time.
        """
        if workflow_of(task_id) is not None:
            await self.task(task_id).cancel(reason=reason)
        else:
            await self._broadcast(control_messages.cancel(task_id, reason=reason))

    # -- workflows --------------------------------------------------------------------------------------

    async def start(
        self,
        workflow: Workflow | Definition,
        value: Any = None,
        *,
        key: str | RequestKey | None = None,
        progress: Progress | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Run:
        """Start a workflow and return its handle.

        The control plane has committed the workflow by then, so that it is not lost.

        `value` is the workflow's input. The same `key` gives the same workflow, however often it is started; `new` of
        the handle says whether this call started it, and the other parameters have no effect if not. The workflow is
        checked before anything is sent, and sent in chunks; `progress(nodes, of)` is called after each chunk. `labels`,
        by which `runs` finds it, are added to the workflow's own: at most 16 in all, texts of up to 200 characters.

        Raises:
            InvalidWorkflow: when the definition is wrong, or no agent offers one of its capabilities.
            TooLarge: when a node, or the input, is over the inline limit.
            InvalidTask: when a value cannot be written as JSON.
            ControlPlaneRequired: when no dispatcher answers; it may have accepted the workflow all the same, which a
                `key` makes harmless.
            BrokerUnavailable: when the broker is away; the workflow may have been accepted as well. Retryable.
        """
        return await self._workflows.start(workflow, encode_any(value), key=key, progress=progress, labels=labels)

    def run(self, workflow: str) -> Run:
        """Return the handle of a workflow by its id, also when another process started it; sends no request yet."""
        return self._workflows.run(workflow)

    # -- the fleet --------------------------------------------------------------------------------------

    async def broadcast(self, topic: str, data: Any = None, *, exclude: Iterable[AgentId | str] = ()) -> None:
        """Send data to every agent except the excluded ones (ids or names); at most once each, without an answer."""
        await self._broadcast(control_messages.broadcast(topic, data, excluded=tuple(exclude)))

    async def _broadcast(self, message: Any) -> None:
        try:
            await self._broker.publish(
                message, exchange=routing.BROADCAST, routing_key="", timeout_seconds=SUBMIT_SECONDS
            )
        except Unroutable:
            log.info("No agent is there to hear a broadcast")

    async def emit(self, /, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event to all listeners, at most once; the lack of listeners is no error.

        Raises:
            InputError: when the type is empty or over 255 bytes, or the subject is no text.
            InvalidTask: when JSON cannot express the data.
        """
        check_event(type_, subject, data)
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
            log.debug("No one listens to an event", extra={"event_type": type_})

    def space(self, name: str) -> SharedState:
        """Return the shared state of a named space, which all agents and clients read and write."""
        place = named_space(arguments.text("name", name, shortest=1, longest=LONGEST_NAME_BYTES))
        return SharedState(StateRequests(self._control), place)

    def events(self, pattern: str = "#", *, of: str | None = None) -> EventStream:
        """Return a stream of the events whose type matches the topic pattern (`task.*`, `agent.online`, `#`).

        With `of`, such as the id of a task, the broker sends only the events about this subject.

        `async with client.events("task.*") as events: async for event in events`. The stream has the events since the
        block was entered; a listener more than 10,000 events behind misses the oldest.
        """
        return self._event_stream.stream(pattern, of=() if of is None else (of,))
