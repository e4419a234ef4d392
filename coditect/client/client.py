"""The client: submit a task, wait for its result, listen to events, talk to the fleet."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from coditect.aio.clock import Clock, SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.blobs import NO_BLOBS, Blobs, open_blobs
from coditect.broker.port import Broker
from coditect.broker.topology import base_topology
from coditect.client.completion import Completions
from coditect.client.direct import DirectLane
from coditect.client.durable import workflow_of
from coditect.client.handle import Handle
from coditect.client.options import SUBMIT_SECONDS, OptionFields, Options, nearest_option
from coditect.client.workflow_run import Run
from coditect.client.workflows import Progress, WorkflowLane
from coditect.codec import encode_any
from coditect.errors import CoditectError, InputError, Overloaded, ResultTimeout, Unroutable
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
from coditect.wire import mail, routing
from coditect.wire.events import event_message
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.rows import ApprovalRow, DeadRow, WorkflowRow
from coditect.workflow.states import WorkflowState

if TYPE_CHECKING:
    from coditect import SyncClient

log = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 500
MOST_CONCURRENCY = 100_000
NO_OPTIONS = Options()


def _chosen(options: Options | None, fields: OptionFields) -> Options:
    """The options with what was given beside them."""
    if options is not None and not isinstance(options, Options):
        arguments.refuse("options", "These are no options", options, "coditect.Options(...)")
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if unknown := given.keys() - OptionFields.__annotations__.keys():
        name = min(unknown)
        arguments.refuse(name, "A submit has no such parameter", given[name], nearest_option(name))
    return replace(options or NO_OPTIONS, **given) if given else options or NO_OPTIONS


class _Sync:
    """`Client.sync()` is for the servers of the environment, `client.sync()` for those of this client."""

    def __get__(self, client: Client | None, kind: type[Client]) -> Callable[[], SyncClient]:
        def sync() -> SyncClient:
            """The same client for code without an event loop; not opened yet.

            `with Client.sync() as client: client.submit(...).result()`. See `SyncClient`.
            """
            from coditect import SyncClient as Blocking  # noqa: PLC0415 - it is made of this class

            return Blocking(kind.from_env() if client is None else client)

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
        self._background = Supervisor()
        self._picker = Selector(registry, self._clock, self._background)
        self._requests = Requests(broker, name=self.name, quorum=quorum_replies, blobs=blobs)
        self._event_stream = EventStreams(broker, name=self.name)
        offers = CapabilityCatalogue(broker, registry)
        self._direct = DirectLane(
            broker,
            self._clock,
            picker=self._picker,
            offers=offers,
            requests=self._requests,
            event_stream=self._event_stream,
        )
        self._workflows = WorkflowLane(
            broker,
            self._clock,
            offers=offers,
            requests=self._requests,
            event_stream=self._event_stream,
            ends=Completions(self._event_stream, self._background),
        )
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
        from coditect.client.program import adapters  # noqa: PLC0415 - the composition root imports the adapters

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
            await self._broker.declare(base_topology(), lazily=True)
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
        self, capability: str, value: Any = None, *, options: Options | None = None, **fields: Unpack[OptionFields]
    ) -> Handle:
        """Publishes a task; returns when the broker has it: from then on it is not lost.

        `value` is anything JSON, pydantic or a dataclass can say, or bytes that are JSON already. The keywords are
        the fields of `Options`, such as `priority="p0"`; they go before those of `options`.

        With `durable=True`, or an `idempotency_key`, the control plane keeps it, as a workflow of one node: it
        returns when that is committed. Such a task survives the loss of the broker's disks, may run for hours, and is
        known by its id to any process (`task`). Priority, limits of time and max_attempts count; a preferred agent
        does not.

        Raises: InputError that names the parameter; UnknownCapability (with the nearest names), TooLarge,
        InvalidTask; Overloaded, BrokerUnavailable, BlobUnavailable (nothing was taken, retryable);
        PublishUnconfirmed (unknown, retryable); ControlPlaneRequired for a durable task where no dispatcher is, and
        for a direct one with a timeout above 25 minutes.
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
        """`submit` with `durable=True`; the same `key` gives the same task."""
        return await self.submit(capability, value, options=options, durable=True, idempotency_key=key)

    def task(self, task_id: str) -> Handle:
        """The handle of a durable task by its id, whoever submitted it; asks for nothing yet.

        Raises: InputError when the id is not that of a durable task.
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
        """Submits each value, at most `concurrency` unconfirmed at once; yields the handles in order.

        So many values are read and checked before any of them is sent. With a strategy the agents are assigned in
        batches of that size: none gets more than it can take, what is over the broker balances.

        With `results=False` nothing comes back: fire and forget, as safe as any other submit.

        Raises: what `submit` raises, after the handles of all that was taken: nothing runs whose handle was not
        yielded. Nothing after the value that failed is sent.
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
        """Submits and waits: the value, or the failure as an error. See `submit` and `Handle.result`.

        After `timeout` nobody wants the result any more: it is the deadline of a direct task that has none, and a
        durable one is canceled.
        """
        chosen = _chosen(options, {})
        arguments.span("timeout", timeout)
        if not chosen.kept and chosen.deadline is None:
            chosen = replace(chosen, deadline=timeout)
        handle = await self.submit(capability, value, options=chosen)
        try:
            return await handle.result(model, timeout=timeout)
        except ResultTimeout:
            if chosen.kept:
                await handle.cancel(reason="nobody waits for it any more")
            raise
        finally:
            handle.forget()

    async def cancel(self, task_id: str, *, reason: str = "") -> None:
        """Asks whoever has the task to cancel it; best effort, remembered by the fleet for ten minutes.

        A durable task is canceled by the control plane, which does not forget.
        """
        if workflow_of(task_id) is not None:
            await self.task(task_id).cancel(reason=reason)
        else:
            await self._broadcast(mail.cancel(task_id, reason=reason))

    # -- workflows --------------------------------------------------------------------------------------

    async def start(
        self,
        workflow: Workflow | Definition,
        value: Any = None,
        *,
        key: str | None = None,
        progress: Progress | None = None,
    ) -> Run:
        """Hands a workflow to the control plane; returns when that has committed it: from then on it is not lost.

        `value` is the workflow's input. The same `key` gives the same workflow, however often it is started: `new` of
        the handle says whether it is another than before, and what else is given does not matter then. It is
        checked before anything is sent, and sent in chunks; `progress(nodes, of)` is called after each.

        Raises: InvalidWorkflow, also for a capability that nobody offers; TooLarge, InvalidTask; ControlPlaneRequired,
        BrokerUnavailable: it may have been accepted all the same, which a `key` makes harmless.
        """
        return await self._workflows.start(workflow, encode_any(value), key=key, progress=progress)

    def run(self, workflow: str) -> Run:
        """The handle of a workflow by its id, whoever started it; asks for nothing yet."""
        return self._workflows.run(workflow)

    async def runs(self, *, state: WorkflowState | None = None, most: int | None = None) -> AsyncIterator[WorkflowRow]:
        """The workflows that the control plane has, or those in one state; the latest first."""
        async for row in self._workflows.runs(state=state, most=most):
            yield row

    async def approvals(self, *, most: int | None = None) -> AsyncIterator[ApprovalRow]:
        """The questions that wait for an answer; `run(row.workflow).answer(row.node, ...)` gives one."""
        async for row in self._workflows.approvals(most=most):
            yield row

    async def dead_nodes(self, *, most: int | None = None) -> AsyncIterator[DeadRow]:
        """The nodes of workflows whose agents died until no attempt was left.

        `run(row.workflow).redrive(row.node.name)` runs one again.
        """
        async for row in self._workflows.dead_nodes(most=most):
            yield row

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

    def events(self, pattern: str = "#", *, of: str | None = None) -> EventStream:
        """Events whose type matches the topic pattern (`task.*`, `agent.online`, `#`); those about one subject, such
        as the id of a task, with `of`: others do not even come here.

        `async with client.events("task.*") as events: async for event in events`. What happens after the
        block was entered is heard; a listener more than 10,000 events behind misses the oldest.
        """
        return self._event_stream.stream(pattern, of=() if of is None else (of,))
