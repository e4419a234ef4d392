"""The runtime of an agent process: consumes tasks, executes them and settles their deliveries.

Each delivery is settled once: acked after the confirm of its result or retry, or returned to its queue. An error of
the runtime itself is a failed attempt; a delivery that cannot be settled at all becomes a dead letter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

from coditect.agent.declaration import Agent
from coditect.agent.execution.binding import bound
from coditect.agent.execution.execution import LEFT_BEHIND, CanceledIds, Execution, ExecutionState, TimeLimits
from coditect.agent.execution.handler import (
    Abandoned,
    Executors,
    HandlerEnd,
    SentBack,
    overrun,
    run_handler,
    tidied,
    unstartable,
)
from coditect.agent.execution.isolation import Isolation, run_apart
from coditect.agent.execution.large_values import fetch_input, put_value
from coditect.agent.execution.runner import TaskRunner
from coditect.agent.execution.tracing import traced
from coditect.agent.guards.guards import Guards
from coditect.agent.heartbeat import Heartbeat
from coditect.agent.intake.instants import by_our_clock
from coditect.agent.intake.intake import Intake
from coditect.agent.intake.queue_consumer import QueueConsumer
from coditect.agent.intake.slots import Slots
from coditect.agent.limits import AgentLimits
from coditect.agent.processes.pool import Workers
from coditect.agent.quarantine import Quarantine, Suspicion
from coditect.agent.services import Means
from coditect.agent.settlement.outcomes import Outcomes
from coditect.agent.settlement.pacing import Pacing
from coditect.agent.settlement.settle import Settler
from coditect.agent.settlement.unstarted import Unstarted
from coditect.agent.workflow_tasks.acquire import AcquireClient
from coditect.agent.workflow_tasks.heartbeats import TaskHeartbeats
from coditect.agent.workflow_tasks.managed import ManagedTasks
from coditect.agent.workflow_tasks.reports import Reports
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError, InputError
from coditect.messaging.event_publisher import Events
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load
from coditect.model.result import Status
from coditect.model.task import NO_LIMITS, ExecutionKey, Task
from coditect.registry.reference_clock import ReferenceClock
from coditect.telemetry.log_context import CURRENT_TASK
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import BREAKER_STATE, HEARTBEAT_LAG, SLOTS
from coditect.wire import routing, tasks
from coditect.wire.control_messages import Cancel

log = logging.getLogger(__name__)

INBOX_GROUP = "inbox"
MOST_CHANNELS = 16
"""Number of channels for each priority level: a queue that does not answer holds up the queues on its channel."""
RETURN_SECONDS = 1.0
SWALLOWED_SECONDS = 5.0
"""How long a handler may take to end after it was canceled, before its attempt is settled without it."""
STUCK_SECONDS = 30.0
"""How long a handler that outlives its attempt may keep its slot, before the agent's process is replaced."""
WAVE_SECONDS = 0.025
"""The run time above which hundreds of tasks may end at the same moment."""


class HandlerStuck(CoditectError):
    """The error of an agent whose handler neither ended at its time limit nor when it was canceled."""


class Runtime:
    """The runtime of one agent process: runs tasks inside `async with`, and drains at its end."""

    _end_of_one: asyncio.Future[None] | None = None
    _program: asyncio.Task[Any] | None = None
    """The asyncio task that runs the agent."""

    def __init__(  # noqa: PLR0913 - everything that an agent works with comes together here
        self,
        agent: Agent,
        agent_id: AgentId,
        *,
        broker: Broker,
        requests: Requests,
        events: Events,
        clock: ReferenceClock,
        limits: AgentLimits,
        background: Supervisor,
        quarantine: Quarantine,
        metrics: Metrics,
        lifespan: Any = None,
    ) -> None:
        self._long = frozenset(one.name for one in agent.capabilities if one.spec.long)
        self._refusing = bool(self._long) or limits.approvals is not None
        self.agent_id, self.addresses, self._clock, self._limits = agent_id, limits.addresses, clock, limits
        self._requests, self._events, self._background = requests, events, background
        self._loop = loop = asyncio.get_running_loop()
        self._slots = slots = Slots(limits.slots, reserve=limits.reserve)
        self._offered, self._batches = bound(agent, slots.startable(Priority.P1), background)
        self._executions, self._settling = (executions := dict[Execution, None]()), dict[asyncio.Task[Any], None]()
        start = TaskRunner(self._execute, executions, loop).start
        self._intake = Intake(
            broker, slots, background, executions, screen=self._screen, start=start, returns=quarantine.hand_back
        )
        self._isolation = Isolation(quarantine, self._intake, slots=limits.slots, most_suspended=limits.max_suspended)
        self._handle = traced(requests.tracing, self._handled, agent_id, self._offered)
        self._quarantine = quarantine if limits.workers else None
        grants = AcquireClient(broker, requests, clock, agent_id=agent_id, limits=limits, offered=agent.capabilities)
        self._reports = reports = Reports(broker, background, clock, heard=grants.heard)
        heartbeats = TaskHeartbeats(reports, background, clock, agent_id=agent_id)
        apart, most = self._isolation if limits.workers else None, limits.max_suspended
        managed = ManagedTasks(grants, heartbeats, reports, intake=self._intake, isolation=apart, most_suspended=most)
        self._managed = managed
        settler = Settler(broker, events, clock, metrics, agent_id=agent_id, addresses=limits.addresses)
        self._outcomes = Outcomes(
            settler, events, clock, metrics, self._end, agent_id=agent_id, capabilities=self._offered, managed=managed
        )
        self._outcomes.tracebacks, settler.tracing = limits.tracebacks, requests.tracing
        self._unstarted = Unstarted(self._outcomes, settler, clock, agent_id=agent_id)
        threads = ThreadPoolExecutor(limits.slots + limits.max_suspended, thread_name_prefix=agent.name)
        workers = (limits.workers or Workers)(background, limits.source, agent.lifespan)
        executors = self._executors = Executors(loop, TimeLimits(loop), threads, workers, ending=self._ends)
        self.guards = guards = Guards(agent, requests, self._intake, settler, background, registry=quarantine.registry)
        self.means = Means(
            requests, events, self._intake, reports, executors, clock, background, limits, guards, lifespan
        )
        self.credit, self._running = self.means.credit, dict[ExecutionKey, Execution]()
        self._now, self._mean_ms, self._pacing, self._canceled = loop.time, 0.0, Pacing(), CanceledIds()

    # -- life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._program = asyncio.current_task()
        for number, name in enumerate(self._offered):
            for level in Priority:
                group = f"{level.value} {number % MOST_CHANNELS}"
                await self._intake.open(QueueConsumer(routing.task_queue(name, level), level, group=group))
        own = partial(QueueConsumer, level=Priority.P1, group=INBOX_GROUP, own=True)
        await self._intake.open(own(routing.inbox_queue(self.agent_id)))
        await self._intake.open(own(routing.next_queue(self.agent_id), passes_on=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()
        await self._executors.workers.close()
        self._executors.threads.shutdown(wait=False, cancel_futures=True)

    async def drain(self) -> None:
        """Start no more tasks, return unstarted ones, and cancel and return those that outlast `drain_seconds`."""
        await self._intake.close()
        self._managed.hand_back()
        self.guards.hand_back()
        for batches in self._batches:
            batches.hurry()
        if self._executions:
            log.info("Draining", extra={"agent_id": self.agent_id, "running": len(self._executions)})
        await self._all_ended(self._limits.drain_seconds)
        for late in [*dict.fromkeys(one.work for one in self._executions), *self._settling]:
            if late is not None:
                late.cancel()
        await self._all_ended(RETURN_SECONDS)  # a handler may ignore its cancellation: it is left behind
        await self._managed.leave_behind(RETURN_SECONDS)
        for execution in self._executions:
            execution.requeue()

    def _ends(self) -> bool:
        """Tell whether the agent drains, or its whole process is being canceled, so that handlers are canceled, too."""
        return self._intake.closed or (self._program is not None and self._program.cancelling() > 0)

    async def _all_ended(self, seconds: float) -> None:
        """Wait until all executions and settlements have ended, at most for the given number of seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._executions:
                    self._end_of_one = self._loop.create_future()
                    await self._end_of_one
                if self._settling:
                    await asyncio.wait(self._settling)

    def load(self) -> Load:
        """Return the agent process's present load, such as status, counts of tasks, latency and what holds tasks up."""
        draining = AgentStatus.DRAINING if self._intake.closed else AgentStatus.IDLE
        return Load(
            status=AgentStatus.BUSY if self._slots.in_use and not self._intake.closed else draining,
            running=self._slots.in_use,
            suspended=self._intake.suspended,
            awaiting_owner=self._managed.waiting_for_owner,
            latency_ms=round(self._mean_ms, 3),
            completed=self._outcomes.completed,
            failed=self._outcomes.failed,
            failed_attempts=self._outcomes.failed_attempts,
            trouble=self._pacing.trouble,
            waiting=tuple(self.guards.breakers.waiting.items()),
            limited=self.guards.rates.told(),
            recent=self._outcomes.attempts.recent(self._clock.now_ms()),
        )

    def observed(self, metrics: Metrics, heartbeat: Heartbeat) -> None:
        """Register the metrics of the agent's slots, breakers and heartbeat."""
        metrics.observe(HEARTBEAT_LAG, lambda: heartbeat.lag_seconds)
        slots = self._slots
        metrics.observe(SLOTS, lambda: slots.in_use, state="busy")
        metrics.observe(SLOTS, lambda: slots.total - slots.in_use, state="free")
        metrics.observe(SLOTS, lambda: self._intake.suspended, state="suspended")
        metrics.observe_all(BREAKER_STATE, self.guards.breakers.states)

    def cancel(self, cancel: Cancel) -> None:
        """Cancel a task that runs in this process, or that arrives within the next ten minutes.

        Of a workflow task only publications up to a number are canceled; without a number only one that runs here.
        """
        self._canceled.put(cancel, self._now())
        for execution in self._executions:
            if execution.wanted_by(cancel):
                execution.cancel(cancel.reason)

    def task(self, task_id: str) -> Task | None:
        """Return the task with the id if its execution in this process has started and not ended, else None."""
        return next((one.task for one in self._executions if one.task.id == task_id), None)

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks whose executions in this process have started and not ended, waiting ones included."""
        return (one.task for one in self._executions)

    # -- consume ----------------------------------------------------------------------------------------

    def _screen(self, delivery: Delivery, consumer: QueueConsumer) -> Execution | None:
        """Return a delivery's execution if its task needs a slot; else deal with the delivery, and return None."""
        try:
            task = tasks.read_task(delivery.message, delivery.routing_key)
            if task.limits is not NO_LIMITS:
                task = by_our_clock(task, delivery.message, self._clock)
            self.addresses.check(task.reply_to)
        except InputError as error:
            self._beside(self._unstarted.refuse(delivery, error))
            return None
        capability = self._offered.get(task.capability)
        if capability is None or (capability.guarded and self._held_up(task, delivery)):
            self._beside(self._unstarted.not_ours(delivery, task))
            return None
        key = task.execution_key
        if self._joined(task, key, delivery):
            return None
        if task.attempt > 1 and self._pacing.for_another(task, delivery):
            self._beside(self._intake.give_back(task, delivery))
            return None
        ended = self._not_any_more(task) if task.owner is None else None  # of a workflow task a claim comes first
        if ended is not None:
            self._beside(self._unstarted.settle_unstarted(task, delivery, ended))
        elif capability.fallback and (diverting := self.guards.breakers.divert(task, delivery)) is not None:
            self._beside(diverting)
        else:
            return Execution(task, delivery, key, consumer.queue, self._now(), consumer.own)
        return None

    def _held_up(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether a task of the agent's own queue must go to its capability's queue: a breaker or rate bars it."""
        name, guards = task.capability, self.guards
        held = name in guards.breakers.waiting or name in guards.rates.waiting
        return held and routing.queue_key(delivery.queue) is None

    def _joined(self, task: Task, key: ExecutionKey | None, delivery: Delivery) -> bool:
        """Tell whether a delivery repeats a task that runs or ran here; then attach it, answer it, or ask its owner."""
        if key is None:
            return False
        running = self._running.get(key)
        if task.owner is not None:
            return self._rejoined(task, key, delivery, running)
        if running is not None:
            running.attach(task, delivery)
            return True
        outcome = self._outcomes.known(key)
        if outcome is not None:
            self._beside(self._unstarted.answer_again(task, delivery, outcome))
        return outcome is not None

    def _rejoined(self, task: Task, key: ExecutionKey, delivery: Delivery, running: Execution | None) -> bool:
        """Tell whether this process runs or ran a repeated workflow task; if so, ask its owner about the delivery."""
        known = partial(self._outcomes.known, key)
        if running is None and known() is None:
            return False
        self._beside(self._managed.rejoin(task, delivery, running, known))
        return True

    def _not_any_more(self, task: Task) -> HandlerEnd | None:
        """Return the rejection or cancellation of a task that must not start; None when the task may start."""
        if task.limits is NO_LIMITS and not (self._refusing or self._canceled.reasons):
            return None
        if (judge := self._limits.approvals) is not None and (refusal := judge.refusal(task)) is not None:
            return HandlerEnd(Status.REJECTED, failure=refusal)
        canceled = self._canceled.reason(task, self._now())
        return unstartable(task, self._clock, long=task.capability in self._long, canceled=canceled)

    def _beside(self, work: Any) -> None:
        """Run a coroutine that settles a delivery, in the background and without a slot; a drain waits for its end."""
        task = self._background.start(work, name="settle")
        self._settling[task] = None
        task.add_done_callback(self._settling.pop)

    # -- execute ----------------------------------------------------------------------------------------

    async def _execute(self, execution: Execution) -> None:
        """Run one task's execution to its end, and settle or return its deliveries, also after any error."""
        key, execution.on_interrupt = execution.key, self._interrupted
        CURRENT_TASK.set(execution.task)  # in a context of the execution's own
        try:
            if not self._joined(execution.task, key, execution.delivery):
                if key is not None:
                    self._running[key] = execution
                if execution.task.owner is not None:
                    await self._managed.execute(execution, self._run)
                elif self._quarantine is None or not self._quarantine.concerns(execution.task, execution.delivery):
                    await self._run(execution, post=True)
                else:
                    async with self._isolation.around(execution) as execution.suspicion:
                        await self._run(execution)
        except BaseException as error:  # noqa: BLE001 - told in full, or raised again
            if execution.abandoned:
                log.info("A handler that swallowed its cancellation has ended", extra={"task_id": execution.task.id})
                self._intake.finished(execution, None)
            else:
                await self._outcomes.unsettled(execution, error)
        finally:
            if execution.state not in LEFT_BEHIND and not execution.abandoned:
                if execution.state is not ExecutionState.SETTLING:  # then the slot was passed on
                    self._intake.finished(execution, None)
                self._end(execution)

    async def _run(self, execution: Execution, *, post: bool = False) -> None:
        """Run one attempt and settle it; with `post`, do not wait for the confirm of a completed task's reply."""
        began = self._now()
        started_ms = execution.started_ms = self._clock.now_ms()
        self._intake.began(execution, began)
        try:
            ended = self._not_any_more(execution.task) or (
                execution.task.claims and await fetch_input(self._requests.blobs, execution)
            )
            ended = ended or await self._handle(execution, started_ms)
            if execution.abandoned:
                raise Abandoned
            if len(ended.body) > tasks.MAX_BODY_BYTES:
                ended = await put_value(self._requests.blobs, ended)
            if ended.failure is not None and ended.status is Status.FAILED:
                self.guards.breakers.check(self._offered[execution.task.capability], ended)
        except SentBack as back:
            if execution.abandoned:
                raise
            await self._outcomes.hand_back(execution, back)
            return
        ran = self._now() - began
        finished_ms = started_ms + round(ran * 1000)
        self._outcomes.attempts.ended(execution, ended, started_ms, ran)
        completed, pause = ended.failure is None, 0.0
        if not completed or self._pacing.trouble:
            pause = self._pacing.pause_seconds(execution.task, ended)
        if self._pass_on_slot(execution, ended, ran, pause):
            await asyncio.sleep(0)  # who was let in starts first: a wave of them would wait for all these results
        if post and completed and not execution.acked_early:
            self._outcomes.post(execution, ended, started_ms, finished_ms)
        else:
            await self._outcomes.settle(execution, ended, started_ms, finished_ms)

    # -- handlers that do not end -----------------------------------------------------------------------

    def _interrupted(self, execution: Execution) -> None:
        self._loop.call_later(SWALLOWED_SECONDS, self._abandon, execution)

    def _abandon(self, execution: Execution) -> None:
        """Settle an attempt whose handler still runs after it was canceled; its slot comes back when the handler ends.

        A handler that keeps the slot for long ends the process, which its supervisor starts again.
        """
        if execution.state is not ExecutionState.INTERRUPTED:
            return
        ended = overrun(self._offered[execution.task.capability], execution)
        execution.abandon()
        self._executors.limits.stop(execution)
        self._beside(self._settle_abandoned(execution, ended, self._clock.now_ms()))
        self._replace_when_stuck(execution, lambda: execution.over, ended)

    async def _settle_abandoned(self, execution: Execution, ended: HandlerEnd, now_ms: int) -> None:
        try:
            started_ms, ran = execution.started_ms, (now_ms - execution.started_ms) / 1000
            self._outcomes.attempts.ended(execution, ended, started_ms, ran)
            execution.settle()
            await self._outcomes.settle(execution, ended, started_ms, now_ms)
        except BaseException as error:  # noqa: BLE001 - told in full, or raised again
            await self._outcomes.unsettled(execution, error)
        finally:
            self._end(execution)

    def _replace_when_stuck(self, execution: Execution, is_over: Callable[[], bool], ended: HandlerEnd) -> None:
        """End the agent's process, after a drain, if a handler without an attempt still runs after 30 s."""

        def replace_process() -> None:
            if not is_over():
                reason = "" if ended.failure is None else ended.failure.message
                facts = {"capability": execution.task.capability, "task_id": execution.task.id, "reason": reason}
                stuck = HandlerStuck("A handler outlives its attempt: this process ends, to be started again", **facts)
                log.error(stuck.sentence, extra=facts)
                self._background.health.fail(stuck)

        self._loop.call_later(STUCK_SECONDS, replace_process)

    def _end(self, execution: Execution) -> None:
        """Remove an ended execution from this process's records, and let it enter its final state."""
        self._executions.pop(execution, None)
        key = execution.key
        if key is not None and self._running.get(key) is execution:
            del self._running[key]
        if self._end_of_one is not None and not self._end_of_one.done():
            self._end_of_one.set_result(None)
        execution.end()  # last: a refusal leaves nothing behind

    def _handled(self, execution: Execution, now_ms: int, *, guarded: bool = False) -> Awaitable[HandlerEnd]:
        capability = self._offered[execution.task.capability]
        if capability.guarded and not guarded:
            again = partial(self._passed, execution)
            return self.guards.passed(capability, execution, partial(self.means.services, execution), again)
        self._events.emit_attempt("task.started", execution.task, now_ms, self.agent_id)
        apart = execution.suspicion is not Suspicion.NONE
        if not (apart or capability.needs_context):
            return run_handler(capability, execution, None, self._executors, now_ms=now_ms)
        context = self.means.context(execution, self.agent_id, blocking=capability.signature.blocking)
        run = (run_apart if apart else run_handler)(capability, execution, context, self._executors, now_ms=now_ms)
        return tidied(context, run)

    async def _passed(self, execution: Execution) -> HandlerEnd:
        """Call a handler that concurrency limit, rate and breaker allow, unless its task may not start any more."""
        ended = self._not_any_more(execution.task)
        return ended or await self._handle(execution, self._clock.now_ms(), guarded=True)

    def _pass_on_slot(self, execution: Execution, ended: HandlerEnd, ran: float, pause: float) -> bool:
        """Free a task's slot now, after a pause, or when its thread ends; tell if waiting tasks should go first."""
        execution.settle()  # first: a refusal frees no slot twice
        somebody_waits = self._intake.waiting > 0 and ran > WAVE_SECONDS
        self._mean_ms += 0.05 * (ran * 1000 - self._mean_ms)
        thread = execution.thread
        if pause:
            self._loop.call_later(pause, self._keep_no_more, execution, ran)
        elif thread is None or thread.done():
            self._intake.finished(execution, ran)
        else:  # it cannot be stopped: the outcome goes out now, the slot comes back when the thread ends
            thread.add_done_callback(lambda _: self._intake.finished(execution, ran))
            self._replace_when_stuck(execution, thread.done, ended)
        return somebody_waits

    def _keep_no_more(self, execution: Execution, ran: float) -> None:
        self._pacing.over()
        self._intake.finished(execution, ran)
