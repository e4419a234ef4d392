"""The `Client`: submits tasks, starts workflows, listens to events, and sends broadcasts to the agents."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import cached_property
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from coditect.aio.clock import Clock, SystemClock
from coditect.aio.loop import HomeLoop, at_home
from coditect.aio.supervisor import Supervisor
from coditect.blobs import NO_BLOBS, Blobs, open_blobs
from coditect.broker.port import Broker, tell
from coditect.broker.topology import base_topology
from coditect.client.approvals import Approvals
from coditect.client.coordination import FleetBreakers, Handoffs, Locks, Threads
from coditect.client.direct import Answer, DirectLane, GroupRequest, offering
from coditect.client.handle import Handle, workflow_of
from coditect.client.listings import Listing, ListingPage, read_page
from coditect.client.options import NONE_FIELDS, SUBMIT_SECONDS, OptionFields, Options, RequestKey, nearest_option
from coditect.client.schedules import Schedules, Triggers
from coditect.client.workflow_run import WorkflowRun
from coditect.client.workflows import Progress, WorkflowLane, Workflows
from coditect.codec import encode_any
from coditect.collaboration.locks import Locking, LockRequests
from coditect.collaboration.state import MAX_STATE_NAME_BYTES, SharedState, StateRequests
from coditect.errors import CoditectError, InputError, Overloaded, ResultTimeout, SetupError, Unroutable
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.event_stream import EventStream, EventStreams
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId
from coditect.model.limits import Breaker
from coditect.model.message import Event, Message
from coditect.model.registration import AgentRecord
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.registry.port import Registry, Search
from coditect.registry.selector import Selector
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.process import open_tracing
from coditect.telemetry.tracing import NO_TRACING, Tracing
from coditect.wire import control_messages, routing
from coditect.wire.control import named_space
from coditect.wire.events import check_event, event_message
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition

if TYPE_CHECKING:
    from coditect import SyncClient
    from coditect.client.webhooks import Webhooks
    from coditect.collaboration.lessons import Lessons
    from coditect.resilience.breakers import GuardedCall

T = TypeVar("T")

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


class Client(Locking):
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
        selector = Selector(registry, self._clock, self._background, metrics)
        self._requests = Requests(broker, name=self.name, blobs=blobs, metrics=metrics, tracing=tracing)
        self._event_stream = EventStreams(broker, name=self.name)
        self._control = ControlPlane(broker, self._requests, self._clock)
        shared = CapabilityCatalogue(broker, registry), self._requests, self._event_stream
        self._direct = DirectLane(broker, self._clock, selector, *shared)
        self._workflow_lane = WorkflowLane(broker, self._clock, self._control, *shared)
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
        self, capability: str, input: Any = None, *, options: Options | None = None, **fields: Unpack[OptionFields]
    ) -> Handle:
        """Submit one task; return its handle once the broker has the task, or the control plane keeps a durable one.

        The broker has confirmed the task by then, so that it is not lost.

        `input` is anything that JSON, pydantic or a dataclass can express, or bytes, which are sent as they are: for a
        handler of bytes, or because they are JSON already. The keywords are the fields of `Options`, such as
        `priority="p0"`; they take precedence over those of `options`, also `timeout=None` and each other None that a
        field may be.

        With `durable=True`, or an `idempotency_key`, the control plane keeps the task, as a workflow of one node, and
        the call returns after the commit. A durable task survives the loss of the broker's disks, may run for hours,
        and any process can get its handle by its id (`tasks.get`). Priority, time limits and max_attempts count; a
        preferred agent does not.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter.
            UnknownCapability: when no agent offers the capability; the error names the nearest names.
            TooLarge: when the input is larger than the wire or the blob store takes.
            InvalidTask: when the input cannot be written as JSON.
            Overloaded: when too many tasks of the capability wait (`max_queued`), for 2 s, or the broker has an alarm
                until the timeout; nothing was taken, and the fact `retry_after` has the seconds to wait. Retryable.
            BrokerUnavailable: when the broker was away until the timeout; nothing was taken, retryable.
            BlobUnavailable: when a large input could not be stored; nothing was taken, retryable.
            PublishUnconfirmed: when no confirm came; the task may have been taken, retryable.
            ControlPlaneRequired: when no dispatcher answers for a durable task, or a direct task has a timeout above 25
                minutes.
        """
        chosen = _chosen(options, fields) if fields or options is not None else NO_OPTIONS
        check_capability_name(capability)
        body = encode_any(input)
        if chosen.kept:
            return await self._workflow_lane.submit(capability, body, chosen)
        return await self._direct.submit(capability, body, chosen)

    async def submit_many(
        self,
        capability: str,
        inputs: Iterable[Any],
        *,
        options: Options | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        **fields: Unpack[OptionFields],
    ) -> AsyncIterator[Handle]:
        """Submit one task for each input, at most `concurrency` unconfirmed at once; yield the handles in order.

        As many inputs as `concurrency` are read and checked before any of them is sent. With a strategy the agents are
        assigned in batches of that size: no agent gets more than it can take, and the broker balances the rest.

        What a full queue refuses is sent again one task after another, and nothing else meanwhile: a batch slows down
        to the pace at which the agents make room, and fails only when one task finds no room within `submit_timeout`.

        With `results=False` no results come back; each submit is as safe as any other.

        Raises:
            CoditectError: the errors of `submit`, after the handles of all tasks that were taken: no task runs whose
                handle was not yielded. No input after the failed one is sent.
        """
        chosen = _chosen(options, fields)
        check_capability_name(capability)
        if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
            arguments.refuse("inputs", "These are no inputs, one for each task", inputs, "a list of them")
        arguments.whole("concurrency", concurrency, 1, MOST_CONCURRENCY)
        if chosen.idempotency_key is not None or chosen.task_id is not None:
            named = "idempotency_key" if chosen.task_id is None else "task_id"
            raise InputError("This names one task", parameter=named, fix="submit each with one of its own")
        lane = self._workflow_lane if chosen.kept else self._direct
        async with aclosing(lane.submit_many(capability, inputs, chosen, concurrency=concurrency)) as handles:
            async for handle in handles:
                yield handle

    async def request(
        self,
        capability: str,
        input: Any = None,
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
        handle = await self.submit(capability, input, options=chosen)
        try:
            return await handle.result(model, timeout=timeout)
        except ResultTimeout:
            if chosen.kept:
                await handle.cancel(reason="its result is not wanted any more")
            raise
        finally:
            handle.forget()

    async def ask_all(
        self,
        capability: str,
        input: Any = None,
        model: Any = Any,
        *,
        agents: Iterable[AgentId | str] | None = None,
        timeout: Duration = "30s",
        priority: Priority | str = Priority.P1,
    ) -> AsyncIterator[Answer]:
        """Ask several agents for the same, and yield each agent's answer as it comes: a value, or why there is none.

        `agents` are ids or names; None means each living process that offers the capability. Of an agent that is named,
        the process with the most free slots is asked. No other agent answers in its place: an agent that is busy is
        asked again until `timeout`. There is one answer for each agent, at the latest then, and one attempt: a handler
        that fails is not tried again. What still runs when the time is over, or the loop is left, is canceled.

        Example:
            async for answer in client.ask_all("plan.vote", plan, agents=["architect", "tester"], timeout="20s"):
                print(answer.agent, answer.value if answer.error is None else answer.error)

        Raises:
            UnknownCapability: when `agents` is None and none offers the capability; names the nearest names.
            InputError: when a parameter is wrong; the error names the parameter.
            InvalidTask: when the input cannot be written as JSON.
            SetupError: for a client without a registry.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        check_capability_name(capability)
        options = Options(priority=arguments.choice("priority", priority, Priority), max_attempts=1)
        longest = seconds(arguments.span("timeout", timeout))
        named = None if agents is None else sorted(arguments.texts("agents", agents))
        body, living = encode_any(input), await self.agents.list()
        assert self._registry is not None
        means = self._direct, self._registry, self._clock
        request = GroupRequest(capability, body, options, longest, model, *means, living)
        asked = offering(capability, living) if named is None else named
        async with aclosing(request.answers(asked, self._background)) as answers:
            async for answer in answers:
                yield answer

    # -- workflows --------------------------------------------------------------------------------------

    async def start(
        self,
        workflow: Workflow | Definition,
        input: Any = None,
        *,
        idempotency_key: str | RequestKey | None = None,
        progress: Progress | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> WorkflowRun:
        """Start a workflow and return its handle; the same as `workflows.start`."""
        return await self.workflows.start(
            workflow, input, idempotency_key=idempotency_key, progress=progress, labels=labels
        )

    async def page(
        self, listing: Listing[T], conditions: Mapping[str, Any], *, cursor: str | None = None, limit: int = 100
    ) -> ListingPage[T]:
        """Return one page of a listing, such as WORKFLOW_PAGES; `conditions` are fields of the request.

        Raises:
            InputError: when the cursor is none of this listing.
        """
        return await read_page(self._control, listing, conditions, cursor=cursor, limit=limit)

    # -- what the control plane and the registry keep ---------------------------------------------------

    @cached_property
    def agents(self) -> Agents:
        """The living agents: `client.agents.list("code.review")`."""
        return Agents(self._registry)

    @cached_property
    def tasks(self) -> Tasks:
        """The tasks by their ids: `client.tasks.get(id)`, `cancel(id)`."""
        return Tasks(self._workflow_lane, self._broadcast)

    @cached_property
    def workflows(self) -> Workflows:
        """The workflows: `client.workflows.start(...)`, `list()`, `get(id)`."""
        return Workflows(self._workflow_lane)

    @cached_property
    def approvals(self) -> Approvals:
        """The questions to people: `client.approvals.list()`, `grant(id, by=...)`, `deny(id, by=...)`, `audit()`."""
        return Approvals(self._control)

    @cached_property
    def schedules(self) -> Schedules:
        """The schedules, which start workflows by the clock: `client.schedules.create(...)`, `list()`, ..."""
        return Schedules(self._control)

    @cached_property
    def triggers(self) -> Triggers:
        """The triggers, which start workflows at events: `client.triggers.create(...)`, `list()`, ..."""
        return Triggers(self._control)

    @cached_property
    def threads(self) -> Threads:
        """The discussions of agents and people: `client.threads.open(...)`, `get(id)`, `list()`."""
        return Threads(self._control, self._requests)

    @cached_property
    def handoffs(self) -> Handoffs:
        """The handoffs of running tasks: `client.handoffs.list()`, `get(id)`, `withdraw(id)`."""
        return Handoffs(self._control)

    @cached_property
    def breakers(self) -> FleetBreakers:
        """The circuit breakers of the fleet: `client.breakers.list()`, `get(name)`, `open(name)`, `reset(name)`."""
        return FleetBreakers(self._control, self._event_stream, self._background, self._home)

    def breaker(self, breaker: str | Breaker) -> GuardedCall:
        """Return a context manager around one call of a dependency: `async with client.breaker("github"): ...`.

        Nothing is held during the call. A `Breaker` says when the breaker opens; it is taken at the client's first use
        of the name, and a name alone has the defaults.

        Raises:
            InputError: when the name is none.
            SetupError: when the client is not open in this event loop, also at the beginning of the block.
            BreakerOpen: at the beginning of the block, when the dependency has failed too often.
        """
        return self.breakers.call(breaker)

    @cached_property
    def locks(self) -> Locks:
        """The locks of the fleet: `client.locks.list()`, `release_all(...)`; `client.lock` takes one."""
        return Locks(self._control, self, self._lock_port)

    @cached_property
    def _lock_port(self) -> LockRequests:
        return LockRequests(self._control, self._requests, self._background)

    async def _locks_released(self) -> None:
        if "_lock_port" in vars(self):
            await self._lock_port.close()

    @cached_property
    def webhooks(self) -> Webhooks:
        """The URLs to which events are posted: `client.webhooks.create(name, url)`, `list()`, `disable(name)`, ..."""
        from coditect.client.webhooks import SPACE, Webhooks  # noqa: PLC0415 - few clients ask for webhooks

        return Webhooks(self.state(SPACE), self._broker, self._clock)

    @cached_property
    def lessons(self) -> Lessons:
        """The lessons learned from failed tasks: `client.lessons.list("code.review")`, `forget("code.review")`."""
        from coditect.collaboration.lessons import Lessons  # noqa: PLC0415 - few clients ask for lessons

        return Lessons(StateRequests(self._control))

    def state(self, space: str) -> SharedState:
        """Return the shared state of a named space, which all agents and clients read and write."""
        place = named_space(arguments.text("space", space, shortest=1, longest=MAX_STATE_NAME_BYTES))
        return SharedState(StateRequests(self._control), place)

    # -- the fleet --------------------------------------------------------------------------------------

    async def broadcast(self, topic: str, data: Any = None, *, exclude: Iterable[AgentId | str] = ()) -> None:
        """Send data to every agent except the excluded ones (ids or names); at most once each, without an answer."""
        await self._broadcast(control_messages.broadcast(topic, data, excluded=tuple(exclude)))

    async def _broadcast(self, message: Message) -> None:
        if not await tell(self._broker, message, within_seconds=SUBMIT_SECONDS):
            log.info("No agent is there to hear a broadcast")

    async def emit(self, /, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event to all listeners, at most once; the lack of listeners is no error.

        Raises:
            InputError: when the type is empty or over 255 bytes, or the subject is no text.
            InvalidTask: when JSON cannot express the data.
        """
        await self.emit_data(type_, data, subject=subject)

    async def emit_data(self, type_: str, data: Mapping[str, Any], *, subject: str = "", by: str | None = None) -> str:
        """Publish an event as `emit` does, with its data as a mapping and `by` as its source; return the event's id.

        Raises:
            InputError: when the type is empty or over 255 bytes, or the subject is no text.
            InvalidTask: when JSON cannot express the data.
        """
        check_event(type_, subject, data)
        source = f"/clients/{by or self.name}"
        event = Event(type_, source, self._clock.new_id(), self._clock.now_ms(), subject, data)
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
        return event.id

    def events(self, pattern: str = "#", *, of: str | None = None) -> EventStream:
        """Return a stream of the events whose type matches the topic pattern (`task.*`, `agent.online`, `#`).

        With `of`, such as the id of a task, the broker sends only the events about this subject.

        `async with client.events("task.*") as events: async for event in events`. The stream has the events since the
        block was entered; a listener more than 10,000 events behind misses the oldest.
        """
        return self._event_stream.stream(pattern, subjects=() if of is None else (of,))


class Agents:
    """The living agents, as the registry knows them."""

    def __init__(self, registry: Registry | None) -> None:
        self._registry = registry

    async def list(self, capability: str | None = None) -> tuple[AgentRecord, ...]:
        """Return the living agents, or those of them that offer a capability, sorted by id.

        Raises:
            SetupError: for a client without a registry.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        if self._registry is None:
            raise SetupError(
                "This client knows no registry of agents", fix="Client.from_env(), or Client(broker, registry)"
            )
        return await self._registry.find(Search(capability))


class Tasks:
    """The tasks by their ids, also those that other processes submitted."""

    def __init__(self, lane: WorkflowLane, broadcast: Callable[[Message], Awaitable[None]]) -> None:
        self._lane = lane
        self._broadcast = broadcast

    def get(self, task_id: str) -> Handle:
        """Return the handle of a durable task by its id, also when another process submitted it; sends no request yet.

        Raises:
            InputError: when the id is not that of a durable task.
        """
        return self._lane.task(task_id)

    async def cancel(self, task_id: str, *, reason: str = "") -> None:
        """Ask the agents, or for a durable task the control plane, to cancel a task; for a direct one at best effort.

        Agents remember the cancel for ten minutes, the control plane without a limit of time.
        """
        if workflow_of(task_id) is not None:
            await self._lane.task(task_id).cancel(reason=reason)
        else:
            await self._broadcast(control_messages.cancel(task_id, reason=reason))
