"""Workflow tasks on the agent's side: the agent runs a task; its owner records the end and decides about retries.

::

    fresh delivery ─────────────────────────────► run ──► result to the owner, confirmed ──► ack
    came back, or older than 1 s ──► ask ──RUN──► run, under the fence that was granted
                                       ├─STALE──► ack, nothing is run
                                       ├─WAIT───► goes back after a pause
                                       ├─RUN, but its connection is gone ──► given back to the owner
                                       └─silence► asked again, without a slot; goes back after ten minutes
    runs or ran here already ──► ask ──RUN──► joins it: its result carries the granted fence

The agent retries nothing and makes no dead letters here. See `docs/workflow-tasks.md`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Protocol

from coditect.agent.execution import Execution, Suspicion
from coditect.agent.handler import SentBack
from coditect.agent.intake import Intake
from coditect.agent.owners import (
    UNBEGUN,
    AcquireClient,
    AcquireRequest,
    Reports,
    Stage,
    TaskHeartbeats,
    no_owner,
    owner_of,
)
from coditect.agent.quarantine import Isolation, killed_its_process
from coditect.agent.settlement import pause_seconds, settle_or_return
from coditect.aio.supervisor import happened
from coditect.broker.port import Delivery, Promise
from coditect.errors import Retryable, Unroutable
from coditect.model.result import INTERRUPTED, NOT_BEGUN, Failure, Outcome, Status
from coditect.model.task import Owner, Task
from coditect.wire import routing
from coditect.wire.json import dumps
from coditect.wire.tasks import OutcomeReport
from coditect.wire.workflow_tasks import Claim, Verdict

log = logging.getLogger(__name__)

MAX_REPORT_PAUSE_SECONDS = 60.0
WAITING_SHARE = 4
"""Tasks that wait for one shard take at most one in `WAITING_SHARE` of the places for tasks without a slot."""
LAST_ANSWER_SECONDS = 1.0
"""How long a drain waits for answers: a later answer may have granted an attempt to an agent that is gone."""


class ManagedRun(Protocol):
    """A function that runs one attempt and settles it; with `post` it returns while the result is still on its way."""

    def __call__(self, execution: Execution, *, post: bool = False) -> Awaitable[None]:
        """Run one attempt and settle it; raise errors that are not the handler's own."""


class ManagedTasks:
    """The workflow tasks of one agent process: asks for grants, runs the tasks, and reports to their owners."""

    def __init__(
        self,
        grants: AcquireClient,
        heartbeats: TaskHeartbeats,
        reports: Reports,
        *,
        intake: Intake,
        isolation: Isolation | None,
    ) -> None:
        """Create the manager; with `isolation` None, a task that may kill its process runs as any other does."""
        self._grants, self._heartbeats, self._reports = grants, heartbeats, reports
        self.heard = grants.heard
        """Note that the broker confirmed a posted result to a shard, so that the shard exists."""
        self._intake = intake
        self._isolation = isolation
        self._stages = heartbeats.stages
        self._asking: dict[asyncio.Task[None], None] = {}
        """The asyncio tasks that have an open acquire request."""
        self._waiting_for: Counter[str] = Counter()
        """The number of tasks that wait without a slot for an answer, by shard."""
        self._leaving = asyncio.Event()

    # -- before it runs -----------------------------------------------------------------------------------

    async def execute(self, execution: Execution, run: ManagedRun) -> None:
        """Run a workflow task and settle or return its delivery; first wait for its owner's grant, if one is needed."""
        task, owner = execution.task, owner_of(execution.task)
        suspect, claimed = killed_its_process(task), False
        if self._grants.needed(task, owner, execution.delivery):
            claim = await self._decided(execution, owner)
            if claim is None:
                return
            _grant(execution, claim)
            if execution.lost:
                await self._give_back(execution)
                return
            suspect = suspect or claim.suspect
            self._heartbeats.granted(execution)
            claimed = True
        self._stages[execution] = Stage.GRANTED if claimed else Stage.RUNNING
        try:
            if execution.awaiting:
                await self._intake.resume(execution)
            if claimed and self._intake.closed:
                self._stages[execution] = Stage.GIVEN_BACK
                await self._begin_anew(execution, NOT_BEGUN)
                return
            self._stages[execution] = Stage.RUNNING
            self._heartbeats.began(execution)
            await self._run(execution, run, isolated=suspect)
        except asyncio.CancelledError:
            unbegun = self._stages[execution] in UNBEGUN
            self._stages[execution] = Stage.GIVEN_BACK
            await asyncio.shield(self._begin_anew(execution, NOT_BEGUN if unbegun else INTERRUPTED))
            raise
        finally:
            self._heartbeats.ended(execution)
            del self._stages[execution]

    async def _run(self, execution: Execution, run: ManagedRun, *, isolated: bool) -> None:
        if not isolated or self._isolation is None:
            await run(execution, post=True)
            return
        execution.suspicion = Suspicion.RECORDED
        self._stages[execution] = Stage.WAITING
        async with self._isolation.place(execution):
            self._stages[execution] = Stage.RUNNING
            await run(execution)

    async def _decided(self, execution: Execution, owner: Owner) -> Claim | None:
        """Ask the dispatcher that owns the task whether it may run, and return its grant.

        Without a grant, ack or return the deliveries, and return None.
        """
        self._stages[execution] = Stage.ASKING
        try:
            async with self._question(execution.task) as question:
                claim = None if self._grants.silent(owner.origin) else await self._grants.ask(question)
                if claim is None or claim.verdict is Verdict.WAIT:
                    claim = await self._waited(execution, question, claim)
        finally:
            del self._stages[execution]
        if claim is None:
            execution.requeue()
        elif not claim.known:
            raise no_owner("The task names a node that does not exist", workflow=owner.workflow, node=owner.node)
        elif claim.verdict is Verdict.STALE:
            log.info("A stale delivery is dropped", extra={"task_id": execution.task.id})
            execution.ack()
            claim = None
        return claim

    async def _waited(self, execution: Execution, question: AcquireRequest, claim: Claim | None) -> Claim | None:
        """Wait without a slot for the owner's answer, and return it; None, or raise SentBack, if the task must go back.

        Tasks that wait for one shard take a share of the places, the others are sent back. A grant brings no slot yet.
        """
        origin = question.origin
        full = self._waiting_for[origin] >= max(1, self._intake.max_suspended // WAITING_SHARE)
        if full or not self._intake.may_suspend(execution):
            raise SentBack
        self._intake.suspend(execution)
        self._waiting_for[origin] += 1
        try:
            if claim is None:
                claim = await self._grants.insist(question, execution.delivery)
            if claim is not None and claim.verdict is Verdict.WAIT:
                await happened(self._leaving, pause_seconds(execution.delivery))
                claim = None
        except BaseException:
            self._intake.abandon(execution)
            raise
        finally:
            self._waiting_for[origin] -= 1
        if claim is None or claim.verdict is Verdict.STALE:
            self._intake.abandon(execution)
        return claim

    @property
    def waiting_for_owner(self) -> int:
        """The number of tasks that wait without a slot for an answer of their owners."""
        return self._waiting_for.total()

    async def _give_back(self, execution: Execution) -> None:
        """Ask the owner to start a task again, whose grant came after this process had lost the delivery."""
        if execution.awaiting:
            self._intake.abandon(execution)
        log.info("A grant that came too late is given back", extra={"task_id": execution.task.id})
        await self._begin_anew(execution, NOT_BEGUN)

    @asynccontextmanager
    async def _question(self, task: Task, *, running: bool = False) -> AsyncIterator[AcquireRequest]:
        """Yield a new acquire request, and drop the request after the block, which a drain cancels after 1 s."""
        question, asking = self._grants.question(task, owner_of(task), running=running), asyncio.current_task()
        assert asking is not None, "in a task of its own"
        self._asking[asking] = None
        try:
            yield question
        finally:
            self._asking.pop(asking, None)
            self._grants.forget(question)

    def hand_back(self) -> None:
        """Start a drain: tasks that wait for a slot go back now, tasks that wait for a grant one second later."""
        self._leaving.set()
        self._grants.closed = True
        for waiting in self._waiting():
            waiting.cancel()
        asyncio.get_running_loop().call_later(LAST_ANSWER_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Cancel the asyncio tasks that still wait for a dispatcher's answer, a slot, or a process of their own."""
        for waiting in self._asking | self._waiting():
            waiting.cancel()

    async def leave_behind(self, seconds: float) -> None:
        """Ask the owners of tasks whose handlers outlast the drain to start them again, for so many seconds at most."""
        left = [execution for execution, stage in self._stages.items() if stage is Stage.RUNNING]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._begin_anew(execution, INTERRUPTED) for execution in left))

    def _waiting(self) -> dict[asyncio.Task[None], None]:
        """Return the asyncio tasks of the workflow tasks that wait for a slot, or for a process of their own."""
        waiting = (execution.work for execution, stage in self._stages.items() if stage in UNBEGUN)
        return dict.fromkeys(work for work in waiting if work is not None)

    # -- another delivery of it -----------------------------------------------------------------------------

    async def rejoin(
        self, task: Task, delivery: Delivery, execution: Execution | None, known: Callable[[], Outcome | None]
    ) -> None:
        """Ask the owner about another delivery of a task that runs or ran here; if already asking, just attach it.

        The task runs as `execution`, or `known` returns the outcome of its run.
        """
        if execution is not None and self._stages.get(execution) is Stage.ASKING:
            execution.attach(task, delivery)
            return
        with self._parked(), nullcontext() if execution is None else execution.rejoining():
            await settle_or_return(self._rejoin(task, delivery, execution, known), delivery)

    async def _rejoin(
        self, task: Task, delivery: Delivery, execution: Execution | None, known: Callable[[], Outcome | None]
    ) -> None:
        """Ask the owner about a repeated delivery, then attach it to the running task, settle it, or return it.

        Another agent may have had the task and died meanwhile, which would make the result stale.
        """
        async with self._question(task, running=True) as question:
            claim = await self._grants.insist(question, delivery)
        if claim is None or claim.verdict is Verdict.WAIT:
            await happened(self._leaving, pause_seconds(delivery))
            delivery.requeue()
        elif claim.verdict is Verdict.STALE:
            delivery.ack()
        elif execution is not None and execution in self._stages:
            _grant(execution, claim)
            execution.attach(task, delivery)
            if execution.acked_early:
                await self._heartbeats.acked_early(execution)
            else:
                self._heartbeats.granted_anew(execution)
        else:
            repeated = Execution(task, delivery, None)
            _grant(repeated, claim)
            outcome = known()
            if outcome is not None and (outcome.failure is None or outcome.attempt == claim.attempt):
                await self.report(repeated, outcome)
            else:  # another attempt than the one that failed here
                await self._begin_anew(repeated, NOT_BEGUN)

    # -- after it ran ---------------------------------------------------------------------------------------

    def post(self, execution: Execution, outcome: Outcome, promise: Promise) -> None:
        """Post a successful task's result to its owner without waiting; `promise` gets the broker's confirm or error.

        After an error the caller must call `report`. A delivery that comes meanwhile asks for a grant, and has the
        value reported again under the granted fence.
        """
        task, owner = execution.task, owner_of(execution.task)
        self._heartbeats.ended(execution)
        self._reports.forget(owner)
        free = self._intake.is_free(routing.task_queue(task.capability, task.priority))
        self._reports.post(OutcomeReport(owner, task.publication, outcome, task.capability, free=free), promise)

    async def report(
        self,
        execution: Execution,
        outcome: Outcome,
        *,
        failed: BaseException | None = None,
    ) -> None:
        """Report a task's end to its owner and ack its deliveries; requeue them if the shard's queue is missing.

        Any other error leaves them unsettled.
        Without a queue of the shard the task goes back after a pause; the result of a task that was acked early is
        offered until it is taken. `failed` is the error of a first try.

        Raises:
            NoOwner: when the shard never had a queue, as far as this process knows.
            CoditectError: any other error of `Broker.publish`.
        """
        self._heartbeats.ended(execution)
        self._reports.forget(owner_of(execution.task))
        pause = pause_seconds(execution.delivery)
        while True:
            try:
                if failed is not None:
                    error, failed = failed, None
                    raise error
                await self._publish(execution, outcome)
            except Unroutable as error:
                self._nobody_there(execution, error)
            except Retryable:
                if not execution.acked_early:
                    raise
            else:
                execution.ack()
                return
            with self._parked():
                await happened(self._leaving, pause)
            if execution.acked_early and self._leaving.is_set():
                log.error("A long task's result could not be told", extra={"task_id": execution.task.id})
                return
            if not execution.acked_early:
                execution.requeue()
                return
            pause = min(2 * pause, MAX_REPORT_PAUSE_SECONDS)

    @contextmanager
    def _parked(self) -> Iterator[None]:
        """Count one more delivery inside the block as held without a slot, so that the broker may send another one."""
        self._intake.park(1)
        try:
            yield
        finally:
            self._intake.park(-1)

    async def _publish(self, execution: Execution, outcome: Outcome) -> None:
        """Publish a task's result to its owner, and again if a redelivery brought a new fence meanwhile."""
        fence = None
        while fence != owner_of(execution.task).fence:
            task, owner = execution.task, owner_of(execution.task)
            fence = owner.fence
            fenced = outcome if outcome.fence == fence else replace(outcome, fence=fence, attempt=task.attempt)
            await self._reports.result(OutcomeReport(owner, task.publication, fenced, task.capability))

    def _nobody_there(self, execution: Execution, error: Unroutable) -> None:
        owner = owner_of(execution.task)
        self._grants.missed(owner.origin, error)
        log.warning(
            "A result has no owner: no dispatcher has declared the queue of its shard",
            extra={"task_id": execution.task.id, "shard": owner.origin, "fix": "run a dispatcher"},
        )

    async def begin_again(self, execution: Execution, *, delay_ms: int) -> None:
        """Ask the owner to publish a task again after a delay, as the same attempt, because this one must not count."""
        self._heartbeats.ended(execution)
        await self._begin_anew(execution, NOT_BEGUN, delay_ms)

    async def _begin_anew(self, execution: Execution, failure: Failure, delay_ms: int | None = None) -> None:
        """Ask the owner to start the task again, then ack the delivery, because a redelivery would cost an attempt."""
        task, owner = execution.task, owner_of(execution.task)
        body = dumps(failure.as_json())
        outcome = Outcome(
            Status.FAILED, body, task.id, task.id, attempt=task.attempt, fence=owner.fence, failure=failure
        )
        outcome = replace(outcome, retry_ms=delay_ms)

        async def report() -> None:
            await self._publish(execution, outcome)
            execution.ack()

        await settle_or_return(report(), execution.delivery, execution)


def _grant(execution: Execution, claim: Claim) -> None:
    """Give the execution's task the granted fence and attempt, and no start-by instant any more."""
    task, owner = execution.task, replace(owner_of(execution.task), fence=claim.fence)
    limits = task.limits
    if limits.start_by_ms is not None:  # the grant is the start: whether it is one in time, its owner has said
        limits = replace(limits, start_by_ms=None)
    execution.task = replace(task, owner=owner, attempt=claim.attempt, limits=limits)
