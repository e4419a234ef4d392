"""The runtime's services for one running handler: requests, locks, retries, progress and events."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent import futures
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar, Unpack
from weakref import WeakValueDictionary

from coditect.agent.execution.execution import Execution, ExecutionState
from coditect.agent.execution.handler import Executors, HandedBack, SentBack
from coditect.agent.execution.parts import PartSender
from coditect.agent.guards.guards import Guards
from coditect.agent.handlers.context import Context, PlainContext, TaskContext
from coditect.agent.handlers.port import BreakerCall
from coditect.agent.intake.intake import Intake
from coditect.agent.limits import AgentLimits as Bounds
from coditect.agent.workflow_tasks.handoffs import Handoffs, owner_to_hand_off
from coditect.agent.workflow_tasks.reports import Reports
from coditect.agent.workspaces import Workspaces
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.aio.threads import Carried, awaited_by, carry_await
from coditect.blobs import fetched
from coditect.client.control_plane import ControlPlane
from coditect.collaboration.blocking_locks import BlockingLock
from coditect.collaboration.lock_requests import LockRequests
from coditect.collaboration.locks import Lock, LockTerms
from coditect.collaboration.state import StateRequests
from coditect.collaboration.thread_requests import ThreadRequests
from coditect.errors import InvalidTask, ResultTimeout, TaskCanceled, UnknownCapability, Unroutable
from coditect.messaging.event_publisher import Events
from coditect.messaging.rpc import Requests
from coditect.model.capability import LONGEST_DIRECT_SECONDS, LONGEST_SECONDS, Priority
from coditect.model.ids import AgentId, TaskId, child_task_id
from coditect.model.result import Outcome
from coditect.model.task import MAX_DEPTH, Limits, Task
from coditect.resilience.retry_budget import RetryBudgets
from coditect.wire.parts import Credit
from coditect.wire.tasks import MAX_BODY_BYTES

T = TypeVar("T")


@dataclass(frozen=True)
class Means:
    """The parts of an agent process that all its `TaskServices` share, such as requests, events, intake and reports."""

    requests: Requests
    events: Events
    intake: Intake
    reports: Reports
    executors: Executors
    clock: Clock
    background: Supervisor
    bounds: Bounds
    guards: Guards
    lifespan: Any = None
    streams: WeakValueDictionary[str, PartSender] = field(default_factory=WeakValueDictionary)
    """The senders of streamed results that the process runs, by execution id."""

    def credit(self, credit: Credit) -> None:
        """Let an execution send more parts of its result; without effect after its end."""
        if (sender := self.streams.get(credit.execution)) is not None:
            sender.credit(credit)

    @cached_property
    def control(self) -> ControlPlane:
        """The sender of the agent's requests to the control plane; made when it is first needed."""
        return ControlPlane(self.requests.broker, self.requests, self.clock)

    @cached_property
    def locks(self) -> LockRequests:
        """The sender of requests about locks; made for the first task that takes a lock."""
        return LockRequests(self.control, self.requests, self.background)

    @cached_property
    def threads(self) -> ThreadRequests:
        """The sender of requests about conversation threads; made for the first task that uses a thread."""
        return ThreadRequests(self.control, self.requests)

    @cached_property
    def handoffs(self) -> Handoffs:
        """The sender of requests about handoffs of tasks to other agents; made when a task first needs it."""
        return Handoffs(self.control, self.requests, self.guards.registry)

    @cached_property
    def workspaces(self) -> Workspaces:
        """The folders of the process's executions; none exists before a task first needs one."""
        return Workspaces(self.bounds.workspace)

    @cached_property
    def retry_budgets(self) -> RetryBudgets:
        """The limits on the process's retries of calls, by dependency; made when a task first needs one."""
        return RetryBudgets()

    def services(self, execution: Execution) -> TaskServices:
        """Return what the handler of one execution may call: requests, locks, progress and other services."""
        task = execution.task
        return TaskServices(execution, task.id or self.clock.new_id(), task.attempt, self)

    def context(self, execution: Execution, agent_id: AgentId, *, blocking: bool) -> TaskContext:
        """Return the context of one execution: a `PlainContext` if `blocking`, else a `Context` for async handlers."""
        task, services = execution.task, self.services(execution)
        headers, kind = execution.delivery.message.headers, PlainContext if blocking else Context
        return kind(task, services.task_id, agent_id, services, workspaces=self.workspaces, headers=headers)


@dataclass(frozen=True, slots=True)
class TaskServices:
    """The `Services` of one running handler in the agent process: requests, locks, progress, events and others."""

    execution: Execution
    task_id: TaskId
    attempt: int
    """The attempt number under which the handler was called; a grant while it runs may give the task another one."""
    means: Means

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
        requests = self.means.requests
        if self.execution.task.depth >= MAX_DEPTH:
            raise InvalidTask(
                "Requests are nested too deep", depth=MAX_DEPTH, fix="find the agents that ask in a circle"
            )
        travels = body if len(body) <= MAX_BODY_BYTES else (await requests.blobs.put(body)).document
        if not self.may_suspend():
            raise SentBack
        level = Priority(priority)  # it is a text from a worker process
        child = self._child(capability, travels, timeout_seconds, ordinal=ordinal, priority=level)
        if travels is not body:
            child = replace(child, claims=travels)
        reply = requests.expect(child.correlation_id or "")
        return await self._suspended(self._exchange(child, reply, timeout_seconds))

    async def _suspended(self, wait: Coroutine[Any, Any, T], *, begun: bool = True) -> T:
        """Await something without the task's slot, and take the slot again before its result is used.

        A task that has not `begun` goes back (`HandedBack`) where it gets no slot and other agents may have one.
        """
        intake, task = self.means.intake, self.execution.task
        intake.suspend(self.execution)
        if task.owner is None or task.limits.timeout_ms is None:  # else the owner counts it
            self.means.executors.limits.pause(self.execution, self._most_seconds())
        try:
            result = await wait
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and (self.execution.asked_to_end or intake.closed):
                intake.abandon(self.execution)
            else:  # a handler goes on, also one that gave up this wait alone, such as by a timeout of its own
                await intake.resume(self.execution)
            raise
        else:
            if not await intake.resume(self.execution, bound=begun):
                raise HandedBack
            return result
        finally:
            if not self.execution.awaiting:
                self.means.executors.limits.go_on(self.execution)

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await something without the task's slot, as `Context.without_slot` says.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`).
        """
        if not self.may_suspend():
            wait.close()
            raise SentBack
        return await self._suspended(wait)

    def may_suspend(self) -> bool:
        """Tell whether the task may free its slot while it awaits something; the agent bounds how many tasks may."""
        return self.means.intake.may_suspend(self.execution, self.means.bounds.max_suspended)

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        """Lock resources for the task, as `LockPort.acquire_lock` says; a task that waits holds no slot.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`), and so does a task that
        got its concurrency key but no slot while other agents may have one.
        """
        locks = self.means.locks
        owner, timeout_seconds = f"{self.task_id}/{self.attempt}", terms["timeout_seconds"]
        wanted = locks.want(resources, terms, owner=owner, task=self.task_id)
        state = await locks.ask(wanted, timeout_seconds=timeout_seconds)
        if state["state"] != "held":
            try:
                if not self.may_suspend():
                    raise SentBack
                waiting = locks.wait_for(wanted, state, timeout_seconds)
                state = await self._suspended(waiting, begun=self.execution.state is not ExecutionState.LOADING)
            except BaseException:  # it may have been granted while the task waited for a slot
                await locks.release_lock(wanted.ticket)
                raise
        return state

    def hold(self, lock: Lock) -> BlockingLock:
        """Return a blocking form of a lock for a plain handler's `with`; a handler that must end still releases it."""
        return BlockingLock(lock, self.run, closing=partial(self.run, closing=True))

    async def ask_state(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about shared state with the task's id and any workflow, node and fence; see `StatePort`."""
        owner = self.execution.task.owner
        by = {} if owner is None else {"by": {"workflow": owner.workflow, "node": owner.node, "fence": owner.fence}}
        return await StateRequests(self.means.control).ask_state(verb, body | {"task": self.task_id} | by)

    async def ask_thread(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request about conversation threads, as `ThreadPort.ask_thread` says, with the task's id."""
        return await self.means.threads.ask_thread(verb, {"task": self.task_id} | body)

    async def hear(self, ticket: str, after_seconds: float) -> None:
        """Wait for news of a conversation thread, as `ThreadPort.hear` says; the task holds no slot meanwhile."""
        await self.without_slot(self.means.threads.hear(ticket, after_seconds))

    async def hand_off(self, to: str, *, reason: str, context: Any, timeout_seconds: float) -> dict[str, Any]:
        """Offer the task to others, without a slot; return the handoff if it failed; an acceptance ends the execution.

        A task above the bound of suspended tasks goes back to its queue instead (`SentBack`).
        """
        execution, asking = self.execution, self.means.handoffs
        owner, given = owner_to_hand_off(execution), {"reason": reason, "context": context}
        if not self.may_suspend():
            raise SentBack
        told = await asking.request(execution, owner, to, **given, timeout_seconds=timeout_seconds)
        return await self._suspended(asking.wait(told, execution))

    async def received_handoff(self) -> dict[str, Any]:
        """Return the handoff that brought the task to this agent, as JSON; `handoff`, its id, is None without one."""
        owner = self.execution.task.owner
        return {"handoff": None} if owner is None else await self.means.handoffs.of_task(owner)

    async def keep_lock(self, ticket: str, *, after_seconds: float, ttl_seconds: float) -> dict[str, Any]:
        """Await news of the lock with the id `ticket`; without news, renew it, as `LockPort.keep_lock` says."""
        return await self.means.locks.keep_lock(ticket, after_seconds=after_seconds, ttl_seconds=ttl_seconds)

    async def release_lock(self, ticket: str) -> None:
        """Release the task's lock with the id `ticket`, or give up the wait for it."""
        await self.means.locks.release_lock(ticket)

    def _most_seconds(self) -> float:
        """Return the seconds that the task may last from now on in total, its waits included."""
        task, most = self.execution.task, LONGEST_SECONDS
        if task.owner is None:  # its delivery stays unacknowledged
            most = self.execution.since + LONGEST_DIRECT_SECONDS - self.means.executors.loop.time()
        if task.limits.deadline_ms is not None:
            most = min(most, (task.limits.deadline_ms - self.means.clock.now_ms()) / 1000)
        return max(0.0, most)

    async def _exchange(self, child: Task, reply: asyncio.Future[Outcome], timeout_seconds: float) -> Outcome:
        requests = self.means.requests
        try:
            async with asyncio.timeout(timeout_seconds):
                await requests.send(child, timeout_seconds=timeout_seconds)
                outcome = await asyncio.shield(reply)
                return await fetched(requests.blobs, outcome) if outcome.claims else outcome
        except asyncio.CancelledError:
            if not reply.done() and (self.execution.asked_to_end or not self.means.intake.closed):
                self.means.background.start(requests.withdraw(child), name="withdraw a request")
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
        requests, parent, now = self.means.requests, self.execution.task, self.means.clock.now_ms()
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
    def retry_budgets(self) -> RetryBudgets:
        """The limits on how many calls of each dependency the agent process may retry."""
        return self.means.retry_budgets

    @property
    def asked_to_end(self) -> bool:
        """Tell whether the attempt was canceled, or its time is over; a drain of the agent alone does not count."""
        return self.execution.asked_to_end

    def now_ms(self) -> int:
        """Return the time of the agent's clock, in Unix milliseconds."""
        return self.means.clock.now_ms()

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
        execution, means = self.execution, self.means
        if execution.parts is None:
            task = execution.task
            address = means.bounds.addresses.find(task.reply_to)
            if address is None:
                raise InvalidTask("The parts of a streamed task need an address", fix="publish it with a reply_to")
            execution.parts = PartSender(
                task, AgentId(means.requests.name), means.requests, address, cancel=execution.cancel
            )
            means.streams[execution.parts.execution_id] = execution.parts
        return execution.parts

    def breaker(self, name: str) -> AbstractAsyncContextManager[BreakerCall]:
        """Return a context manager around one call of a dependency, as `Context.breaker` says."""
        return self.means.guards.breakers.get(name).call()

    def progress(self, share: float, note: str) -> None:
        """Publish the task's progress as an event; report a workflow task's progress to its owner, too."""
        owner = self.execution.task.owner
        if owner is not None:
            self.means.reports.progress(owner, share, note)
        self.means.events.emit("task.progress", subject=self.task_id, share=share, note=note)

    def report(self, share: float, note: str) -> None:
        """Publish the task's progress as `progress` does, but from a handler's thread."""
        self.means.executors.loop.call_soon_threadsafe(self.progress, share, note)

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event that the handler defines, at most once."""
        self.means.events.emit(type_, subject=subject, **data)

    @property
    def lifespan(self) -> Any:
        """The value of the agent's lifespan."""
        return self.means.lifespan

    def run(self, work: Coroutine[Any, Any, T], *, closing: bool = False) -> T:
        """Run a coroutine of the agent on its event loop, and wait for it in the handler's thread.

        With `closing` it is run even if the handler is to end.

        Raises:
            TaskCanceled: when the attempt was canceled, or its time is over.
        """
        execution = self.execution
        if closing:
            return asyncio.run_coroutine_threadsafe(self._awaited(work), self.means.executors.loop).result().result()
        if execution.asked_to_end:
            work.close()
            raise _asked_to_end()
        call = asyncio.run_coroutine_threadsafe(self._awaited(work), self.means.executors.loop)
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
