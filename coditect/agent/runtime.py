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
from typing import TYPE_CHECKING, Any, Self

from coditect.agent.admission import Admission
from coditect.agent.declaration import Agent
from coditect.agent.execution import (
    ENDED,
    INTERRUPTED,
    LEFT_BEHIND,
    SETTLING,
    Execution,
    Suspicion,
    TaskRunner,
    TimeLimits,
)
from coditect.agent.guards import Guards
from coditect.agent.handler import (
    Abandoned,
    AttemptOutcome,
    Executors,
    SentBack,
    fetch_input,
    limit_seconds,
    overrun,
    put_value,
    run_handler,
    runnable,
    tidied,
    traced,
)
from coditect.agent.heartbeat import Heartbeat
from coditect.agent.intake import Intake, QueueCredit, Slots
from coditect.agent.managed import ManagedTasks
from coditect.agent.outcomes import Outcomes, Replies
from coditect.agent.owners import AcquireClient, Reports, TaskHeartbeats
from coditect.agent.pool import Workers
from coditect.agent.quarantine import Isolation, Quarantine, run_isolated
from coditect.agent.services import Host, ProcessServices
from coditect.agent.settlement import Settler
from coditect.agent.workspaces import Workspaces
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.messaging.event_publisher import Events
from coditect.messaging.rpc import Requests
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load
from coditect.model.result import Status
from coditect.model.task import Task
from coditect.registry.port import ReferenceClock
from coditect.settings.settings import Settings
from coditect.telemetry.logs import CURRENT_TASK
from coditect.telemetry.metrics import BREAKER_STATE, HEARTBEAT_LAG, SLOTS, Metrics
from coditect.wire import routing, tasks
from coditect.wire.control_messages import Cancel
from coditect.wire.routing import ReturnAddresses

if TYPE_CHECKING:  # only an agent with a policy imports what a policy needs
    from coditect.agent.approvals import AgentApprovals

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
    _mean_ms = 0.0
    _program: asyncio.Task[Any] | None = None
    """The asyncio task that runs the agent."""
    _quarantine: Quarantine | None
    """The quarantine of suspects; None in a fleet under test, whose suspects run as any other task."""

    def __init__(  # noqa: PLR0913 - everything that an agent works with comes together here
        self,
        agent: Agent,
        agent_id: AgentId,
        *,
        broker: Broker,
        requests: Requests,
        events: Events,
        clock: ReferenceClock,
        settings: Settings,
        host: Host,
        background: Supervisor,
        quarantine: Quarantine,
        approvals: AgentApprovals | None,
    ) -> None:
        self.agent_id, self._clock, self._drain_seconds = agent_id, clock, settings.drain_seconds
        self._loop, self._background, places = asyncio.get_running_loop(), background, settings.max_suspended
        self.addresses = addresses = ReturnAddresses(settings.answer_queues)
        self._slots = slots = Slots(settings.slots or agent.slots, reserve=agent.reserve)
        offered, self._batches = runnable(agent, slots.startable(Priority.P1))
        self._offered = offered
        self._executions = executions = dict[Execution, None]()
        start = TaskRunner(self._execute, executions, self._loop).start
        self._intake = intake = Intake(
            broker, slots, background, executions, start=start, returns=quarantine.hand_back, max_suspended=places
        )
        self._isolation = Isolation(quarantine, intake, slots=slots.total)
        self._handle = traced(requests.tracing, self._handled, agent_id, offered)
        grants = AcquireClient(requests, clock, approvals=approvals, offered=agent.capabilities)
        reports = Reports(broker, background, clock, heard=grants.heard)
        heartbeats = TaskHeartbeats(reports, background, clock, agent_id=agent_id)
        self._quarantine, isolation = (quarantine, self._isolation) if host.workers else (None, None)
        self._managed = managed = ManagedTasks(grants, heartbeats, reports, intake=intake, isolation=isolation)
        settler = Settler(broker, events, clock, requests.tracing, agent_id)
        replies = Replies(broker, events, host.metrics, addresses=addresses)
        self._outcomes = outcomes = Outcomes(
            settler, replies, events, host.metrics, self._end, agent_id=agent_id, capabilities=offered, managed=managed
        )
        outcomes.tracebacks = settings.tracebacks
        threads = ThreadPoolExecutor(slots.total + places, thread_name_prefix=agent.name)
        workers = (host.workers or Workers)(background, host.source, agent.lifespan)
        self._executors = executors = Executors(self._loop, TimeLimits(self._loop), threads, workers, ending=self._ends)
        self.guards = guards = Guards(agent, requests, intake, settler, background, registry=quarantine.registry)
        self._admission = Admission(
            outcomes, guards, intake, clock, background, agent_id=agent_id, capabilities=offered, approvals=approvals
        )
        intake.screen = self._admission.screen
        workspaces = Workspaces(settings.workspace)
        self.services = ProcessServices(
            requests, events, intake, reports, executors, clock, background, guards, addresses, workspaces
        )

    # -- life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._program = asyncio.current_task()
        for number, name in enumerate(self._offered):
            for level in Priority:
                group = f"{level.value} {number % MOST_CHANNELS}"
                await self._intake.open(QueueCredit(routing.task_queue(name, level), level, group=group))
        own = partial(QueueCredit, level=Priority.P1, group=INBOX_GROUP, own=True)
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
        self.guards.keys.hand_back()
        for batches in self._batches:
            batches.hurry()
        if self._executions:
            log.info("Draining", extra={"agent_id": self.agent_id, "running": len(self._executions)})
        await self._all_ended(self._drain_seconds)
        for late in [*dict.fromkeys(execution.work for execution in self._executions), *self._admission.settling]:
            if late is not None:
                late.cancel()
        await self._all_ended(RETURN_SECONDS)
        for execution in self._executions:  # a handler may ignore its cancellation: it is left behind
            execution.leave_behind()
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
                if self._admission.settling:
                    await asyncio.wait(self._admission.settling)

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
            trouble=self._admission.pacing.trouble,
            waiting=tuple(self.guards.breakers.waiting.items()),
            limited=self.guards.rates.shortages(),
            recent=self._outcomes.attempts.recent(self._clock.now_ms()),
            learned=self._outcomes.attempts.predictor.weights(self._clock.now_ms()),
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
        self._admission.canceled.put(cancel, self._loop.time())
        for execution in self._executions:
            if execution.wanted_by(cancel):
                execution.cancel(cancel.reason, handed_off=cancel.handed_off)

    def task(self, task_id: str) -> Task | None:
        """Return the task with the id if its execution in this process has started and not ended, else None."""
        return next((execution.task for execution in self._executions if execution.task.id == task_id), None)

    def tasks(self) -> Iterator[Task]:
        """Yield the tasks whose executions in this process have started and not ended, waiting ones included."""
        return (execution.task for execution in self._executions)

    # -- execute ----------------------------------------------------------------------------------------

    async def _execute(self, execution: Execution) -> None:
        """Run one task's execution to its end, and settle or return its deliveries, also after any error."""
        key, admission, execution.on_interrupt = execution.key, self._admission, self._interrupted
        CURRENT_TASK.set(execution.task)  # in a context of the execution's own
        try:
            if not admission.joined(execution.task, key, execution.delivery):
                if key is not None:
                    admission.running[key] = execution
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
                if execution.state is not SETTLING:  # then the slot was passed on
                    self._intake.finished(execution, None)
                self._end(execution)

    async def _run(self, execution: Execution, *, post: bool = False) -> None:
        """Run one attempt and settle it; with `post`, do not wait for the confirm of a completed task's reply."""
        began = self._loop.time()
        started_ms = execution.started_ms = self._clock.now_ms()
        self._intake.began(execution, began)
        try:
            ended = self._admission.barred(execution.task) or (
                execution.task.claims and await fetch_input(self.services.requests.blobs, execution)
            )
            ended = ended or await self._handle(execution, started_ms)
            if execution.abandoned:
                raise Abandoned
            if len(ended.body) > tasks.MAX_BODY_BYTES:
                ended = await put_value(self.services.requests.blobs, ended)
            if ended.failure is not None and ended.status is Status.FAILED:
                self.guards.breakers.check(self._offered[execution.task.capability], ended)
        except SentBack as back:
            if execution.abandoned:
                raise
            await self._outcomes.hand_back(execution, back)
            return
        ran = self._loop.time() - began
        finished_ms = started_ms + round(ran * 1000)
        self._outcomes.attempts.ended(execution, ended, started_ms, ran)
        completed, pause = ended.failure is None, 0.0
        if not completed or self._admission.pacing.trouble:
            pause = self._admission.pacing.pause_seconds(execution.task, ended)
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
        if execution.state is not INTERRUPTED:
            return
        ended = overrun(self._offered[execution.task.capability], execution)
        execution.abandon()
        self._executors.limits.stop(execution)
        self._admission.settle_beside(self._settle_abandoned(execution, ended, self._clock.now_ms()))
        self._replace_when_stuck(execution, lambda: execution.over, ended)

    async def _settle_abandoned(self, execution: Execution, ended: AttemptOutcome, now_ms: int) -> None:
        try:
            started_ms, ran = execution.started_ms, (now_ms - execution.started_ms) / 1000
            self._outcomes.attempts.ended(execution, ended, started_ms, ran)
            execution.enter(SETTLING)
            await self._outcomes.settle(execution, ended, started_ms, now_ms)
        except BaseException as error:  # noqa: BLE001 - told in full, or raised again
            await self._outcomes.unsettled(execution, error)
        finally:
            self._end(execution)

    def _replace_when_stuck(self, execution: Execution, is_over: Callable[[], bool], ended: AttemptOutcome) -> None:
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
        key, running = execution.key, self._admission.running
        if key is not None and running.get(key) is execution:
            del running[key]
        if self._end_of_one is not None and not self._end_of_one.done():
            self._end_of_one.set_result(None)
        execution.enter(ENDED)  # last: a refusal leaves nothing behind

    def _handled(self, execution: Execution, now_ms: int, *, passed: bool = False) -> Awaitable[AttemptOutcome]:
        capability = self._offered[execution.task.capability]
        if capability.guarded and not passed:
            call_handler = partial(self._passed, execution)
            return self.guards.passed(capability, execution, partial(self.services.for_task, execution), call_handler)
        self.services.events.emit_attempt("task.started", execution.task, now_ms, self.agent_id)
        execution.limit_seconds = limit_seconds(capability, execution.task, now_ms)
        isolated = execution.suspicion is not Suspicion.NONE
        if not (isolated or capability.needs_context):
            return run_handler(capability, execution, None, self._executors)
        context = self.services.context(execution, self.agent_id, blocking=capability.signature.blocking)
        run = run_isolated if isolated else run_handler
        return tidied(context, run(capability, execution, context, self._executors))

    async def _passed(self, execution: Execution) -> AttemptOutcome:
        """Call a handler that concurrency limit, rate and breaker allow, unless its task may not start any more."""
        ended = self._admission.barred(execution.task)
        return ended or await self._handle(execution, self._clock.now_ms(), passed=True)

    def _pass_on_slot(self, execution: Execution, ended: AttemptOutcome, ran: float, pause: float) -> bool:
        """Free a task's slot now, after a pause, or when its thread ends; tell if waiting tasks should go first."""
        execution.enter(SETTLING)  # first: a refusal frees no slot twice
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
        self._admission.pacing.over()
        self._intake.finished(execution, ran)
