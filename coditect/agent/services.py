"""The runtime's services for one running handler: requests, locks, retries, progress and events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent import futures
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack
from weakref import WeakValueDictionary

from coditect.agent.context import BreakerCall, Context, PlainContext, TaskContext
from coditect.agent.execution import Execution, ExecutionState, PartSender
from coditect.agent.guards import Guards
from coditect.agent.handler import Executors, HandedBack, SentBack
from coditect.agent.heartbeat import Usage
from coditect.agent.intake import Intake
from coditect.agent.owners import Reports, owner_of
from coditect.agent.pool import Workers
from coditect.agent.workspaces import Workspaces
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Health, Supervisor
from coditect.aio.threads import Carried, awaited_by, carry_await
from coditect.blobs import fetched
from coditect.collaboration.handoffs import HandoffState, agents_to_ask
from coditect.collaboration.locks import BlockingLock, Lock, LockRequests, LockTerms
from coditect.collaboration.state import StateRequests
from coditect.collaboration.threads import ThreadRequests
from coditect.errors import (
    CoditectError,
    ControlPlaneRequired,
    InputError,
    InvalidTask,
    ResultTimeout,
    Retryable,
    TaskCanceled,
    UnknownCapability,
    Unroutable,
)
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.event_publisher import Events
from coditect.messaging.rpc import Requests
from coditect.model.capability import LONGEST_DIRECT_SECONDS, LONGEST_SECONDS, Priority
from coditect.model.ids import AgentId, TaskId, child_task_id
from coditect.model.result import Outcome
from coditect.model.task import MAX_DEPTH, Limits, Owner, Task
from coditect.registry.port import Registry
from coditect.resilience.retries import RetryBudgets
from coditect.telemetry.metrics import MemoryMetrics, Metrics
from coditect.telemetry.tracing import NO_TRACING, SKIPPED, Tracing, begin_step
from coditect.wire.control import Verb
from coditect.wire.headers import TraceContext
from coditect.wire.routing import ReturnAddresses
from coditect.wire.tasks import MAX_BODY_BYTES, Credit

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Host:
    """The things that an agent gets from its process: source file, CPU and memory use, health, metrics, tracing."""

    source: str | None = None
    """The file or module that declares the agent, for handlers in other processes; None means each handler's own file.
    """
    sample: Callable[[], Usage] | None = None
    """A function that returns the use of CPU and memory; None means that of this process."""
    workers: Callable[..., Workers] | None = Workers
    """The class of the worker processes; None lets suspects run as any other task, as in a fleet under test."""
    health: Health = field(default_factory=Health)
    """The state of the process's loops, which the loops report; those of the broker's connection are among them."""
    metrics: Metrics = field(default_factory=MemoryMetrics)
    tracing: Tracing = NO_TRACING
    """The tracing of the process; opened and closed by its program."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the registration says of the agent beside its declaration."""


@dataclass
class ProcessServices:
    """The parts of an agent process that all its `TaskServices` share, such as requests, events, intake and reports."""

    requests: Requests
    events: Events
    intake: Intake
    reports: Reports
    executors: Executors
    clock: Clock
    background: Supervisor
    guards: Guards
    addresses: ReturnAddresses
    """The return addresses that the agent may answer."""
    workspaces: Workspaces
    """The folders of the process's executions; none exists before a task first needs one."""
    lifespan: Any = None
    streams: WeakValueDictionary[str, PartSender] = field(default_factory=WeakValueDictionary)
    """The senders of streamed results that the process runs, by execution id."""

    retry_budgets: RetryBudgets = field(default_factory=RetryBudgets)
    """The limits on the process's retries of calls, by dependency."""

    def __post_init__(self) -> None:
        self.control = self.guards.control
        self.threads = ThreadRequests(self.control, self.requests)
        self.handoffs = Handoffs(self.control, self.requests, self.guards.registry)

    def credit(self, credit: Credit) -> None:
        """Let an execution send more parts of its result; without effect after its end."""
        if (sender := self.streams.get(credit.execution)) is not None:
            sender.credit(credit)

    @cached_property
    def locks(self) -> LockRequests:
        """The sender of requests about locks; made, with its metrics, for the first task that takes a lock."""
        return LockRequests(self.control, self.requests, self.background)

    def for_task(self, execution: Execution) -> TaskServices:
        """Return what the handler of one execution may call: requests, locks, progress and other services."""
        task = execution.task
        return TaskServices(execution, task.id or self.clock.new_id(), task.attempt, self)

    def context(self, execution: Execution, agent_id: AgentId, *, blocking: bool) -> TaskContext:
        """Return the context of one execution: a `PlainContext` if `blocking`, else a `Context` for async handlers."""
        task, services = execution.task, self.for_task(execution)
        headers, kind = execution.delivery.message.headers, PlainContext if blocking else Context
        return kind(task, services.task_id, agent_id, services, workspaces=self.workspaces, headers=headers)


@dataclass(frozen=True, slots=True)
class TaskServices:
    """The `Services` of one running handler in the agent process: requests, locks, progress, events and others."""

    execution: Execution
    task_id: TaskId
    attempt: int
    """The attempt number under which the handler was called; a grant while it runs may give the task another one."""
    process: ProcessServices

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        """Submit a child task and await its outcome, as `Context.request` describes.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`). A cancellation of the
        request cancels the child, since no other task asked for it; while the agent drains it does not, because the
        agent that runs this task next asks for the same child again.

        Raises:
            InvalidTask: when requests are nested deeper than `MAX_DEPTH`.
            ResultTimeout: when the child gave no result within `timeout_seconds`.
            UnknownCapability: when no agent offers the capability.
            TooLarge: when the blob store refuses the child's large input.
            BlobUnavailable: when a large value cannot be stored or fetched; retryable.
        """
        requests = self.process.requests
        if self.execution.task.depth >= MAX_DEPTH:
            raise InvalidTask(
                "Requests are nested too deep", depth=MAX_DEPTH, fix="find the agents that ask in a circle"
            )
        travels = body if len(body) <= MAX_BODY_BYTES else (await requests.blobs.put(body)).document
        if not self.process.intake.may_suspend(self.execution):
            raise SentBack
        level = Priority(priority)  # it is a text from a worker process
        child = self._child(capability, travels, timeout_seconds, ordinal=ordinal, priority=level)
        if travels is not body:
            child = replace(child, claims=travels)
        reply = requests.expect(child.correlation_id or "")
        return await self._suspended(self._exchange(child, reply, timeout_seconds))

    async def _suspended(
        self,
        wait: Coroutine[Any, Any, T],
        *,
        begun: bool = True,
        resuming: AbstractAsyncContextManager[None] | None = None,
    ) -> T:
        """Await something without the task's slot, and take the slot again before its result is used.

        The slot is waited for inside of `resuming`.
        A task that has not `begun` goes back (`HandedBack`) where it gets no slot and other agents may have one.
        """
        intake, task = self.process.intake, self.execution.task
        intake.suspend(self.execution)
        if task.owner is None or task.limits.timeout_ms is None:  # else the owner counts it
            self.process.executors.limits.pause(self.execution, self._seconds_left())
        try:
            result = await wait
        except BaseException as error:
            if issubclass(type(error), asyncio.CancelledError) and (self.execution.asked_to_end or intake.closed):
                intake.abandon(self.execution)
            else:  # a handler goes on, also one that gave up this wait alone, such as by a timeout of its own
                await intake.resume(self.execution)
            raise
        else:
            async with resuming or nullcontext():
                if not await intake.resume(self.execution, bound=begun):
                    raise HandedBack
            return result
        finally:
            if not self.execution.awaiting:
                self.process.executors.limits.go_on(self.execution)

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await something without the task's slot, as `Context.without_slot` says.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`).
        """
        if not self.process.intake.may_suspend(self.execution):
            wait.close()
            raise SentBack
        return await self._suspended(wait)

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        """Lock resources for the task, as `LockPort.acquire_lock` says; a task that waits holds no slot.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`), and so does a task that
        got its concurrency key but no slot while other agents may have one.
        """
        locks = self.process.locks
        owner, timeout_seconds = f"{self.task_id}/{self.attempt}", terms["timeout_seconds"]
        wanted = locks.want(resources, terms, owner=owner, task=self.task_id, trace=self._trace)
        state = await locks.ask(wanted, timeout_seconds=timeout_seconds)
        if state["state"] != "held":
            try:
                if not self.process.intake.may_suspend(self.execution):
                    raise SentBack
                waiting = locks.wait_for(wanted, state, timeout_seconds)
                begun = self.execution.state is not ExecutionState.LOADING
                granted = await self._suspended(waiting, begun=begun, resuming=locks.kept(wanted))
                state = locks.latest(wanted, granted)
            except BaseException:  # it may have been granted while the task waited for a slot
                await locks.release_lock(wanted.ticket)
                raise
        return state

    def hold(self, lock: Lock) -> BlockingLock:
        """Return a blocking form of a lock for a plain handler's `with`; a handler that must end still releases it."""
        return BlockingLock(lock, self.run, closing=partial(self.run, closing=True))

    async def ask_state(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about shared state with the task's id and any workflow, node and fence; see `StatePort`."""

        async def ask() -> dict[str, Any]:
            owner = self.execution.task.owner
            by = {} if owner is None else {"by": {"workflow": owner.workflow, "node": owner.node, "fence": owner.fence}}
            return await StateRequests(self.process.control).ask_state(verb, body | {"task": self.task_id} | by)

        return await self._under_fence(ask)

    async def _under_fence(self, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Ask with the task's fence, and again after a refusal if a redelivery has brought the task a new fence."""
        while True:
            owner = self.execution.task.owner
            try:
                return await ask()
            except InputError:
                await self.execution.rejoined()
                if self.execution.task.owner == owner:
                    raise

    async def ask_thread(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about conversation threads, as `ThreadPort.ask_thread` says, with the task's id."""
        return await self.process.threads.ask_thread(verb, {"task": self.task_id} | body)

    async def hear(self, ticket: str, after_seconds: float) -> None:
        """Wait for news of a conversation thread, as `ThreadPort.hear` says; the task holds no slot meanwhile."""
        await self.without_slot(self.process.threads.hear(ticket, after_seconds))

    async def hand_off(self, to: str, *, reason: str, context: Any, timeout_seconds: float) -> dict[str, Any]:
        """Offer the task to others, without a slot; return the handoff if it failed; an acceptance ends the execution.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`).
        """
        execution, asking = self.execution, self.process.handoffs
        if execution.task.owner is None:
            sentence = "A direct task cannot be handed off: the control plane does not keep it"
            raise InputError(sentence, task=execution.task.id, fix=KEEP_IT)
        if not self.process.intake.may_suspend(self.execution):
            raise SentBack
        terms = {"reason": reason, "context": context, "timeout_seconds": timeout_seconds}
        requested = await self._under_fence(lambda: asking.request(execution, to, **terms))
        facts = {"coditect.handoff.id": requested["handoff"], "coditect.handoff.to": to}
        span = begin_step(self.process.requests.tracing, "hand off", self._trace, facts)
        state = "withdrawn"
        try:
            ended = await self._suspended(asking.wait(requested, execution))
            state = ended["state"]
        finally:  # an acceptance cancels the execution
            if span is not None:
                span.add({"coditect.handoff.state": "accepted" if execution.handed_off else state})
                span.end()
        return ended

    async def received_handoff(self) -> dict[str, Any]:
        """Return the handoff that brought the task to this agent, as JSON; `handoff`, its id, is None without one."""
        owner = self.execution.task.owner
        return {"handoff": None} if owner is None else await self.process.handoffs.of_task(owner)

    async def keep_lock(self, ticket: str, *, after_seconds: float) -> dict[str, Any]:
        """Await news of the lock with the id `ticket`; without news, renew it, as `LockPort.keep_lock` says."""
        return await self.process.locks.keep_lock(ticket, after_seconds=after_seconds)

    async def release_lock(self, ticket: str) -> None:
        """Release the task's lock with the id `ticket`, or give up the wait for it."""
        await self.process.locks.release_lock(ticket)

    def _seconds_left(self) -> float:
        """Return the seconds that the task may last from now on in total, its waits included."""
        task, limit = self.execution.task, LONGEST_SECONDS
        if task.owner is None:  # its delivery stays unacknowledged
            limit = self.execution.since + LONGEST_DIRECT_SECONDS - self.process.executors.loop.time()
        if task.limits.deadline_ms is not None:
            limit = min(limit, (task.limits.deadline_ms - self.process.clock.now_ms()) / 1000)
        return max(0.0, limit)

    async def _exchange(self, child: Task, reply: asyncio.Future[Outcome], timeout_seconds: float) -> Outcome:
        requests = self.process.requests
        try:
            async with asyncio.timeout(timeout_seconds):
                await requests.send(child, timeout_seconds=timeout_seconds)
                outcome = await asyncio.shield(reply)
                return await fetched(requests.blobs, outcome) if outcome.claims else outcome
        except asyncio.CancelledError:
            if not reply.done() and (self.execution.asked_to_end or not self.process.intake.closed):
                self.process.background.start(requests.withdraw(child), name="withdraw a request")
            raise
        except TimeoutError as error:
            raise ResultTimeout("The requested task gave no result in time", task_id=child.id) from error
        except Unroutable as error:
            raise UnknownCapability("No agent offers this capability", capability=child.capability) from error
        finally:
            requests.forget(child.correlation_id or "")

    def _child(
        self,
        capability: str,
        travels: bytes,
        timeout_seconds: float,
        *,
        ordinal: int,
        priority: Priority,
    ) -> Task:
        requests, parent, now = self.process.requests, self.execution.task, self.process.clock.now_ms()
        deadline, trace = now + int(timeout_seconds * 1000), self.execution.span or parent
        if parent.limits.deadline_ms is not None:
            deadline = min(deadline, parent.limits.deadline_ms)
        child_id = child_task_id(self.task_id, capability, travels, ordinal)
        return Task(
            capability,
            priority,
            travels,
            id=child_id,
            correlation_id=requests.new_token(),
            reply_to=requests.reply_to,
            limits=Limits(deadline_ms=deadline),
            depth=parent.depth + 1,
            published_at_ms=now,
            traceparent=trace.traceparent,
            tracestate=trace.tracestate,
            baggage=trace.baggage,
        )

    @property
    def _trace(self) -> TraceContext:
        """The span of the attempt, and before it begins the task's trace context; a task in no trace begins none."""
        task = self.execution.task
        return self.execution.span or (task if task.traceparent is not None else SKIPPED)

    @property
    def retry_budgets(self) -> RetryBudgets:
        """The limits on how many calls of each dependency the agent process may retry."""
        return self.process.retry_budgets

    @property
    def asked_to_end(self) -> bool:
        """Tell whether the attempt was canceled, or its time is over; a drain of the agent alone does not count."""
        return self.execution.asked_to_end

    def now_ms(self) -> int:
        """Return the time of the agent's clock, in Unix milliseconds."""
        return self.process.clock.now_ms()

    async def send_part(self, body: bytes) -> None:
        """Send the next part of a streamed result, once the requester's credit allows it.

        Raises:
            InvalidTask: when the task has no reply address.
            CoditectError: the errors of `PartSender.send`.
        """
        await self._part_sender().send(body)

    async def end_parts(self, *, complete: bool) -> int:
        """Wait until the broker has all parts of a streamed result; return their number; see `Services.end_parts`."""
        if not complete and self.execution.parts is None:
            return 0
        return await self._part_sender().end(complete=complete)

    def _part_sender(self) -> PartSender:
        execution, process = self.execution, self.process
        if execution.parts is None:
            task = execution.task
            address = process.addresses.find(task.reply_to)
            if address is None:
                raise InvalidTask("The parts of a streamed task need an address", fix="publish it with a reply_to")
            execution.parts = PartSender(
                task, AgentId(process.requests.name), process.requests, address, cancel=execution.cancel
            )
            process.streams[execution.parts.execution_id] = execution.parts
        return execution.parts

    def breaker(self, name: str) -> AbstractAsyncContextManager[BreakerCall]:
        """Return a context manager around one call of a dependency, as `Context.breaker` says."""
        return self.process.guards.breakers.get(name).call()

    def progress(self, share: float, note: str) -> None:
        """Publish the task's progress as an event; report a workflow task's progress to its owner, too."""
        owner = self.execution.task.owner
        if owner is not None:
            self.process.reports.progress(owner, share, note)
        self.process.events.emit("task.progress", subject=self.task_id, share=share, note=note)

    def report(self, share: float, note: str) -> None:
        """Publish the task's progress as `progress` does, but from a handler's thread."""
        self.process.executors.loop.call_soon_threadsafe(self.progress, share, note)

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event that the handler defines, at most once."""
        self.process.events.emit(type_, subject=subject, **data)

    @property
    def lifespan(self) -> Any:
        """The value of the agent's lifespan."""
        return self.process.lifespan

    def run(self, work: Coroutine[Any, Any, T], *, closing: bool = False) -> T:
        """Run a coroutine of the agent on its event loop, and wait for it in the handler's thread.

        With `closing` it is run even if the handler is to end.

        Raises:
            TaskCanceled: when the attempt was canceled, or its time is over.
        """
        execution = self.execution
        if closing:
            return asyncio.run_coroutine_threadsafe(self._awaited(work), self.process.executors.loop).result().result()
        if execution.asked_to_end:
            work.close()
            raise _asked_to_end()
        call = asyncio.run_coroutine_threadsafe(self._awaited(work), self.process.executors.loop)
        if execution.calls is None:
            execution.calls = set()
        execution.calls.add(call)
        try:
            if execution.interruption is not None:  # between the look above and the entry
                call.cancel()
            carried = call.result()
        except futures.CancelledError as error:
            raise _asked_to_end() from error
        finally:
            execution.calls.discard(call)
        return carried.result()

    async def _awaited(self, work: Coroutine[Any, Any, T]) -> Carried[T]:
        # the thread is known on the loop: it may be ahead of it
        return await carry_await(awaited_by(self.execution.thread, work))


def _asked_to_end() -> TaskCanceled:
    return TaskCanceled("The task was asked to end: a plain handler should return", fix="let this error pass")


HANDOFF_CHECK_SECONDS = 5.0
"""The pause between two questions for the state of a handoff, asked in case the news of its end was lost."""
WITHDRAW_SECONDS = 10.0
KEEP_IT = "submit it with durable=True, or make it a node of a workflow"


class Handoffs:
    """The handoffs that the tasks of one agent process request."""

    def __init__(self, control: ControlPlane, requests: Requests, registry: Registry) -> None:
        self._control = control
        self._requests = requests
        self._registry = registry

    async def request(
        self, execution: Execution, to: str, *, reason: str, context: Any, timeout_seconds: float
    ) -> dict[str, Any]:
        """Ask the control plane to offer a task to others, and return the handoff as JSON values; `wait` must follow.

        If it is canceled meanwhile, the handoff is withdrawn as by a canceled `wait`.

        Raises:
            RegistryUnavailable: when the agents to ask are not known; retryable.
            InputError: when the task is not this agent's any more, or was handed off too often.
            TooLarge: when the context is over 64,000 bytes.
            ControlPlaneRequired: when no dispatcher answers.
        """
        candidates, capability = await agents_to_ask(self._registry, to, owner=self._requests.name)
        owner, ticket = owner_of(execution.task), self._requests.new_token()
        self._requests.expect(ticket)  # the news may come before the answer
        body = {
            "workflow": owner.workflow,
            "node": owner.node,
            "fence": owner.fence,
            "agent": self._requests.name,
            "to": to,
            "capability": capability,
            "candidates": candidates,
            "reason": reason,
            "context": context,
            "timeout_ms": max(1, round(1000 * timeout_seconds)),
            "ticket": ticket,
            "reply_to": self._requests.reply_to,
        }
        asked = asyncio.ensure_future(self._control.ask(Verb.HANDOFF_REQUEST, body))
        try:
            return await asyncio.shield(asked) | {"ticket": ticket}
        except BaseException as error:
            self._requests.forget(ticket)
            if isinstance(error, asyncio.CancelledError):
                _end_if_accepted(execution, await asyncio.shield(self._take_back(asked)))
            raise

    async def wait(self, requested: dict[str, Any], execution: Execution) -> dict[str, Any]:
        """Wait until a handoff has ended and return it; after an acceptance, end the execution instead.

        If the wait is canceled, the handoff is withdrawn; one that is accepted already ends the execution all the same.
        """
        handoff, ticket, known = requested["handoff"], requested["ticket"], requested
        try:
            while known["state"] == HandoffState.REQUESTED:
                await asyncio.wait({self._requests.expect(ticket)}, timeout=HANDOFF_CHECK_SECONDS)
                known = await self._look(handoff, known)
        except asyncio.CancelledError:
            _end_if_accepted(execution, await asyncio.shield(self._withdraw(handoff, known)))
            raise
        finally:
            self._requests.forget(ticket)
        if _end_if_accepted(execution, known):
            await asyncio.get_running_loop().create_future()  # the cancellation ends it
        return known

    async def of_task(self, owner: Owner) -> dict[str, Any]:
        """Return the last accepted handoff of a task as JSON values; `handoff`, its id, is None when there was none."""
        return await self._control.ask(Verb.HANDOFF_SHOW, {"task": f"{owner.workflow}:{owner.node}"})

    async def _look(self, handoff: str, known: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._control.ask(Verb.HANDOFF_SHOW, {"handoff": handoff})
        except (Retryable, ControlPlaneRequired):  # the task is still this agent's, as far as anybody knows
            return known

    async def _take_back(self, asked: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """Await the answer to a handoff request, then withdraw the handoff; without an answer, let it time out."""
        try:
            requested = await asyncio.wait_for(asked, WITHDRAW_SECONDS)
        except (CoditectError, TimeoutError):
            return {"state": HandoffState.REQUESTED}
        return await self._withdraw(requested["handoff"], requested)

    async def _withdraw(self, handoff: str, known: dict[str, Any]) -> dict[str, Any]:
        body = {"handoff": handoff, "by": self._requests.name, "reason": "its owner does not wait any more"}
        try:
            return await self._control.ask(Verb.HANDOFF_WITHDRAW, body, timeout=WITHDRAW_SECONDS)
        except CoditectError as error:
            log.info("A handoff is left to its time", extra={"handoff": handoff, "reason": str(error)})
            return known


def _end_if_accepted(execution: Execution, known: dict[str, Any]) -> bool:
    """End the execution of a task if another agent has accepted the task; return whether one has."""
    if known["state"] != HandoffState.ACCEPTED:
        return False
    log.info("A task was handed off", extra={"task_id": execution.task.id, "to": known["by"]})
    execution.cancel(f"handed off to {known['by']}", handed_off=True)
    return True
