"""What an agent asks and tells the owner of a workflow task: for a grant before the task runs, progress and results.

A delivery that came back, or that is not fresh any more, may have run elsewhere meanwhile, or may not be wanted any
more: its shard decides, and grants the fence under which it runs. A request keeps its id, however often it is sent;
each copy gets the same answer. Results and progress go to the exchange `coditect.results`, by shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from coditect.agent.declaration import Capability
from coditect.agent.execution import Execution
from coditect.agent.quarantine import earlier_deliveries
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Backoff, Supervisor
from coditect.broker.port import Broker, Delivery, Promise
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Owner, Task
from coditect.wire import routing
from coditect.wire.control import Progress, Started, Verb, progress_message, request, started_message
from coditect.wire.json import loads
from coditect.wire.tasks import SENT_AGAIN, OutcomeReport, outcome_report_message
from coditect.wire.workflow_tasks import (
    BATCH_BYTES_LIMIT,
    LONGEST_BYTES,
    MAX_BATCHED_RESULTS,
    Claim,
    claim_body,
    may_share,
    results_message,
)

if TYPE_CHECKING:
    from coditect.agent.approvals import AgentApprovals

log = logging.getLogger(__name__)

FRESH_MS = 1_000
"""The age, since the publication, up to which the first delivery of a task runs without a grant."""
MOST_AHEAD_MS = 500
"""How far before its publication, by differing clocks, a delivery may arrive; if still earlier, its age is unknown."""
ACQUIRE_ANSWER_SECONDS = 5.0
"""How long an answer is awaited before the request is sent again; the first wait holds the task's slot."""
ACQUIRE_BACKOFF = Backoff(0.5, 60.0)
GIVE_UP_SECONDS = 600.0
"""How long an acquire request is repeated before the delivery goes back: the broker waits 30 minutes for its ack."""


class NoOwner(InvalidTask):
    """The error of a task whose named owner does not exist: nothing could grant its start or take its result."""


def owner_of(task: Task) -> Owner:
    """Return the owner of a workflow task."""
    assert task.owner is not None, "only workflow tasks come here"
    return task.owner


def no_owner(sentence: str, **named: str) -> NoOwner:
    """Return the error of a task that names an owner that does not exist."""
    fix = "publish it without x-coditect-workflow; or run the dispatcher that owns it, and redrive"
    return NoOwner(sentence, **named, fix=fix)


@dataclass(eq=False, slots=True)
class AcquireRequest:
    """A question to the control plane whether a task may run, from its first publish to its answer."""

    message: Message
    origin: str
    reply: asyncio.Future[Outcome]

    @property
    def id(self) -> str:
        """The id of the request, the same for each publish."""
        return self.message.correlation_id or ""


class AcquireClient:
    """The sender of one agent process's acquire requests, which knows the shards that do not answer."""

    def __init__(
        self,
        requests: Requests,
        clock: Clock,
        *,
        approvals: AgentApprovals | None = None,
        offered: Iterable[Capability] = (),
    ) -> None:
        self._approvals = approvals
        self._max_attempts = {capability.name: capability.retry.max_attempts for capability in offered}
        self._requests = requests
        self._clock = clock
        self._silent: set[str] = set()
        """The shards that exist and left the last request, or the last result, without an answer."""
        self._heard: set[str] = set()
        """The shards that ever answered or took something; each has a queue, so no publisher can make this set grow."""
        self.heard = self._heard.add
        """Note that a shard exists: it took a result, or a message about a task that runs."""
        self.closed = False
        """Whether the client sends no further request; earlier requests may still be answered."""

    def needed(self, task: Task, owner: Owner, delivery: Delivery) -> bool:
        """Tell whether the agent must get a grant before it runs a delivered workflow task.

        It must, among others, for a repeated delivery, a message over 1 s old, a shard that does not answer, and a task
        that may need an approval.
        """
        published = task.published_at_ms
        if earlier_deliveries(delivery) or published is None or owner.origin in self._silent:
            return True
        if SENT_AGAIN in delivery.message.headers:  # the other copy runs unasked
            return True
        if self._approvals is not None and self._approvals.concern(task.capability):  # its owner may be forged
            return True
        return not -MOST_AHEAD_MS <= self._clock.now_ms() - published <= FRESH_MS

    def silent(self, origin: str) -> bool:
        """Tell whether a shard left the last request, or the last result, without an answer."""
        return origin in self._silent

    def missed(self, origin: str, error: Unroutable) -> None:
        """Note that a shard's queue is missing, so its tasks need a grant; raise NoOwner if it was never heard of.

        The tasks need a grant before they run until the shard answers.

        Raises:
            NoOwner: when the shard never had a queue, as far as this process knows.
        """
        if origin not in self._heard:
            raise no_owner("The task names a shard that does not exist", origin=origin) from error
        self._silent.add(origin)

    def question(self, task: Task, owner: Owner, *, running: bool = False) -> AcquireRequest:
        """Create the acquire request of a task; `forget` must end it."""
        question_id = self._clock.new_id()
        body = claim_body(
            owner,
            publication=task.publication,
            agent=AgentId(self._requests.name),
            running=running,
            max_attempts=self._max_attempts.get(task.capability),
        )
        message = request(Verb.CLAIM, body, reply_to=self._requests.reply_to, correlation_id=question_id)
        return AcquireRequest(message, owner.origin, self._requests.expect(question_id))

    def forget(self, question: AcquireRequest) -> None:
        """Drop a request, whose answer is not awaited any more."""
        self._requests.forget(question.id)

    async def ask(self, question: AcquireRequest, *, pause_seconds: float = 0.0) -> Claim | None:
        """Send a request once and return the shard's answer; None without a readable answer within 5 s.

        None also means that no dispatcher is there now. The message expires after `ACQUIRE_ANSWER_SECONDS` and the
        pause, when the next message may be sent, so that no dispatcher finds a request of an agent that is gone.

        Raises:
            NoOwner: when the shard never had a queue, as far as this process knows, or refuses the request as invalid.
        """
        if self.closed:
            return None
        expiration_ms = round(1000 * (ACQUIRE_ANSWER_SECONDS + pause_seconds))
        try:
            async with asyncio.timeout(ACQUIRE_ANSWER_SECONDS):
                await self._requests.broker.publish(
                    replace(question.message, expiration_ms=expiration_ms),
                    exchange=routing.CONTROL,
                    routing_key=question.origin,
                    timeout_seconds=ACQUIRE_ANSWER_SECONDS,
                )
                await asyncio.wait([question.reply])
        except TimeoutError:
            self._unanswered(question, "no answer in time")
        except Unroutable as error:
            self.missed(question.origin, error)
            self._unanswered(question, str(error))
        except CoditectError as error:
            self._unanswered(question, str(error))
        else:
            return self._read(question)
        return None

    async def insist(self, question: AcquireRequest, delivery: Delivery) -> Claim | None:
        """Send a request again and again until it is answered, for about ten minutes; return the answer, else None.

        None means that the delivery is lost, or that no answer came within `GIVE_UP_SECONDS`.

        Raises:
            NoOwner: as `ask` does.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + GIVE_UP_SECONDS
        for pause in ACQUIRE_BACKOFF.pauses():
            if loop.time() >= give_up or delivery.lost:
                break
            claim = await self.ask(question, pause_seconds=pause)
            if claim is not None:
                return claim
            await asyncio.wait([question.reply], timeout=pause)
            if question.reply.done() and (claim := self._read(question)) is not None:
                return claim
        return None

    def _read(self, question: AcquireRequest) -> Claim | None:
        """Return the shard's answer, and prepare to receive the reply to the next send.

        None when the reply is unreadable or an error of the shard.

        Raises:
            NoOwner: when the shard refuses the request as invalid: it would refuse it each time.
        """
        reply, question.reply = question.reply, self._requests.expect(question.id)
        try:
            outcome = reply.result()
            failure = outcome.failure
            claim = Claim.read(loads(outcome.body)) if failure is None else None
        except CoditectError as error:
            self._unanswered(question, str(error))
            return None
        if failure is not None and failure.type == InvalidTask.__name__:
            raise no_owner("The task names no node that its shard could have", reason=failure.message)
        if failure is not None:
            self._unanswered(question, f"{failure.reason}: {failure.message}")
            return None
        self._heard.add(question.origin)
        self._silent.discard(question.origin)
        return claim

    def _unanswered(self, question: AcquireRequest, reason: str) -> None:
        level = logging.DEBUG if question.origin in self._silent else logging.WARNING
        self._silent.add(question.origin)
        facts = {"shard": question.origin, "reason": reason}
        log.log(level, "The control plane does not answer; its tasks wait without a slot", extra=facts)


REPORT_PUBLISH_SECONDS = 60.0
PROGRESS_SECONDS = 5.0
"""How long the publish of a progress message may take; a later message makes up for a lost one."""
PROGRESS_GATHER_SECONDS = 0.1
"""The time within which reports of progress are gathered into one message."""
PROGRESS_PAUSE_SECONDS = 1.0
"""The least time between two progress messages."""
MOST_NOTE = 500


class ResultBatch:
    """Several results that travel in one message; its confirm or error goes to the future of each result."""

    def __init__(self) -> None:
        self.results: list[OutcomeReport] = []
        self.promises: list[Promise] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        """True when the batch has no room for another result, by number or by bytes."""
        return len(self.results) >= MAX_BATCHED_RESULTS or self._bytes > BATCH_BYTES_LIMIT - LONGEST_BYTES

    def add(self, result: OutcomeReport, promise: Promise) -> None:
        """Add one small result (see `may_share`), and the future that gets the message's confirm or error."""
        self.results.append(result)
        self.promises.append(promise)
        self._bytes += len(result.outcome.body)

    def done(self) -> bool:
        """Tell whether the futures of all results in the batch are done."""
        return all(promise.done() for promise in self.promises)

    def set_result(self, result: None) -> None:
        """Tell the future of each result, unless it is done already, that the broker confirmed the message."""
        for promise in self._waiting():
            promise.set_result(result)

    def set_exception(self, exception: BaseException) -> None:
        """Tell the future of each result, unless it is done already, with which error the publish failed."""
        for promise in self._waiting():
            promise.set_exception(exception)

    def _waiting(self) -> list[Promise]:
        return [promise for promise in self.promises if not promise.done()]


class Reports:
    """The publisher of results and progress of one agent process to the owners of its workflow tasks."""

    def __init__(self, broker: Broker, background: Supervisor, clock: Clock, *, heard: Callable[[str], None]) -> None:
        """Create the publisher; `heard` is called with the shard after each confirmed message, except by `post`."""
        self._heard = heard
        self._broker = broker
        self._background = background
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._posts: dict[str, ResultBatch] = {}
        """The results of this turn of the loop, by shard."""
        self._pending: dict[Owner, Progress] = {}
        self._last_said: dict[tuple[str, str], tuple[float, str]] = {}
        self._flushed = -PROGRESS_PAUSE_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    async def result(self, result: OutcomeReport) -> None:
        """Publish the result of an attempt to the task's owner, and return after the broker's confirm.

        Raises:
            Unroutable: when no dispatcher ever had this shard.
            CoditectError: any other error of `Broker.publish`.
        """
        message = outcome_report_message(result, message_id=self._clock.new_id())
        await self.tell(message, result.owner.origin)

    def post(self, result: OutcomeReport, promise: Promise) -> None:
        """Post a result without waiting; small results for one shard in one event-loop iteration share a message.

        The promise is resolved by the confirm, or fails with the error of the publish.
        """
        origin = result.owner.origin
        if not may_share(result):
            self._post([result], promise, origin)
            return
        if not self._posts:
            self._loop.call_soon(self._post_all)
        batch = self._posts.setdefault(origin, ResultBatch())
        batch.add(result, promise)
        if batch.full:
            self._post(batch.results, self._posts.pop(origin), origin)

    def _post_all(self) -> None:
        posts, self._posts = self._posts, {}
        for origin, batch in posts.items():
            self._post(batch.results, batch if len(batch.results) > 1 else batch.promises[0], origin)

    def _post(self, results: list[OutcomeReport], promise: Promise, origin: str) -> None:
        """Post one result, or several in one message, to a shard."""
        message_id = self._clock.new_id()
        if len(results) == 1:
            message = outcome_report_message(results[0], message_id=message_id)
        else:
            message = results_message(results, message_id=message_id)
        self._broker.post(
            message,
            promise,
            exchange=routing.RESULTS,
            routing_key=origin,
            timeout_seconds=REPORT_PUBLISH_SECONDS,
            wait_when_full=True,
        )

    async def tell(self, message: Message, origin: str, *, within_seconds: float = REPORT_PUBLISH_SECONDS) -> None:
        """Publish a message to the owner of a shard, and return after the broker's confirm.

        Raises:
            Unroutable: when no dispatcher ever had this shard.
            CoditectError: any other error of `Broker.publish`.
        """
        await self._broker.publish(
            message, exchange=routing.RESULTS, routing_key=origin, timeout_seconds=within_seconds
        )
        self._heard(origin)

    def progress(self, owner: Owner, share: float, note: str) -> None:
        """Report how far a task is, at most once; of the reports within a second only the last of each task is sent."""
        note = note[:MOST_NOTE]
        self._last_said[(owner.workflow, owner.node)] = (share, note)
        self._say(owner, share, note)

    def alive(self, owners: Iterable[Owner]) -> None:
        """Report that the workflow tasks of some owners still run, by a repetition of each task's last progress."""
        for owner in owners:
            self._say(owner, *self._last_said.get((owner.workflow, owner.node), (0.0, "")))

    def forget(self, owner: Owner) -> None:
        """Forget the last progress of a workflow task that ended."""
        if self._last_said:
            self._last_said.pop((owner.workflow, owner.node), None)
            self._pending.pop(owner, None)

    def _say(self, owner: Owner, share: float, note: str) -> None:
        at_ms = self._clock.now_ms()
        self._pending[owner] = Progress(owner.workflow, owner.node, owner.fence, share, note, at_ms)
        if self._timer is None:
            at = max(self._loop.time() + PROGRESS_GATHER_SECONDS, self._flushed + PROGRESS_PAUSE_SECONDS)
            self._timer = self._loop.call_at(at, self._flush)

    def _flush(self) -> None:
        self._timer, self._flushed = None, self._loop.time()
        by_shard: dict[str, list[Progress]] = {}
        for owner, progress in self._pending.items():
            by_shard.setdefault(owner.origin, []).append(progress)
        self._pending.clear()
        for origin, said in by_shard.items():
            self._background.start(self._send(said, origin), name="progress")

    async def _send(self, said: list[Progress], origin: str) -> None:
        try:
            await self.tell(progress_message(said), origin, within_seconds=PROGRESS_SECONDS)
        except CoditectError as error:
            log.debug("Progress was not told", extra={"shard": origin, "reason": str(error)})


class Stage(Enum):
    """The stage of a workflow task in an agent: asking its owner, granted, waiting for a process, running, given back.

    ::

        fresh delivery ────────────────────► RUNNING ◄──► WAITING
        any other ──► ASKING ──► GRANTED ──►─┘  │            │
                                    └───────────┴────────────┴──► GIVEN_BACK

    A task without a stage is not with the agent, or its deliveries are settled without a run.
    """

    ASKING = auto()
    """The owner is asked whether the task may run here; deliveries that come meanwhile wait for the same answer."""
    GRANTED = auto()
    """The owner has granted the task, which waits for a slot."""
    WAITING = auto()
    """The task, a suspect, has begun for its owner, and waits for a place for its process."""
    RUNNING = auto()
    """The task's handler runs, or its result is on the way to the owner."""
    GIVEN_BACK = auto()
    """The agent drains, and asks the owner to start the task again."""


UNBEGUN = (Stage.GRANTED, Stage.WAITING)
"""The stages in which the handler has not begun, and a drain cancels the wait."""
BEGUN_FOR_OWNER = (Stage.WAITING, Stage.RUNNING)
"""The stages in which the owner gets reports that the task has started."""

Stages = dict[Execution, Stage]


START_REPORT_SECONDS = 0.1
LONG_SECONDS = 600.0
"""The run time after which a delivery is acknowledged before its task has ended."""
BEAT_SECONDS = 20.0
HEARTBEAT_BACKOFF = Backoff(1.0, 60.0)


class TaskHeartbeats:
    """The workflow tasks that run in one agent process, and the timers of their heartbeats."""

    def __init__(self, reports: Reports, background: Supervisor, clock: Clock, *, agent_id: AgentId) -> None:
        self.stages: Stages = {}
        """The stage of each workflow task that the agent holds, which `ManagedTasks` sets."""
        self._reports = reports
        self._background = background
        self._clock = clock
        self._agent_id = agent_id
        self._loop = asyncio.get_running_loop()
        self._unreported: dict[Execution, float] = {}
        self._reported: dict[Execution, asyncio.TimerHandle] = {}
        self._look_at: asyncio.TimerHandle | None = None
        self._beat_at: asyncio.TimerHandle | None = None

    def granted(self, execution: Execution) -> None:
        """Start the heartbeats of a task that its owner has granted; its run (`began`) may start much later."""
        self._follow(execution, self._loop.time())

    def began(self, execution: Execution) -> None:
        """Note that a workflow task starts to run; after 100 ms report that, if it still runs and its owner needs it.

        An owner that granted the task gets no report, unless it counts the task's run time.
        """
        if execution in self._reported and execution.task.limits.timeout_ms is None:
            return
        self._unreported[execution] = now = self._loop.time()
        if self._look_at is None:
            self._look_at = self._loop.call_at(now + START_REPORT_SECONDS, self._look)

    def granted_anew(self, execution: Execution) -> None:
        """Note a new grant, under another fence, of a running task; report its start again if it has a timeout."""
        if self._runs(execution):
            self.began(execution)

    def ended(self, execution: Execution) -> None:
        """Stop the heartbeats of a workflow task that does not run any more. Idempotent."""
        self._unreported.pop(execution, None)
        timer = self._reported.pop(execution, None)
        if timer is not None:
            timer.cancel()

    def _follow(self, execution: Execution, since: float) -> None:
        """Start the timers of a task: heartbeats to its owner, and the early acknowledgement after ten minutes."""
        self._reported[execution] = self._loop.call_at(since + LONG_SECONDS, self._grown_long, execution)
        if self._beat_at is None:
            self._beat_at = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _look(self) -> None:
        """Report the starts of all tasks that began at least 100 ms ago, and schedule the next check."""
        now = self._loop.time()
        by_shard: dict[str, dict[Execution, int]] = {}
        for execution, since in list(self._unreported.items()):
            if since + START_REPORT_SECONDS <= now:
                del self._unreported[execution]
                if execution not in self._reported:
                    self._follow(execution, since)
                at_ms = self._clock.now_ms() - round(1000 * (now - since))
                by_shard.setdefault(owner_of(execution.task).origin, {})[execution] = at_ms
        for origin, starts in by_shard.items():
            self._background.start(self._report_starts(starts, origin), name="starts")
        self._look_at = self._loop.call_at(now + START_REPORT_SECONDS, self._look) if self._unreported else None

    async def _report_starts(self, starts: dict[Execution, int], origin: str) -> None:
        """Report the starts of tasks to a shard until the broker confirms, or none of the tasks runs any more."""
        pauses = HEARTBEAT_BACKOFF.pauses()
        while running := [self._started(task, at_ms) for task, at_ms in starts.items() if self._runs(task)]:
            try:
                await self._reports.tell(started_message(running), origin)
            except CoditectError as error:
                log.info("Starts were not told", extra={"shard": origin, "reason": str(error)})
            else:
                return
            await asyncio.sleep(next(pauses))

    def _runs(self, execution: Execution) -> bool:
        return execution in self._reported and self.stages.get(execution) in BEGUN_FOR_OWNER

    def _started(self, execution: Execution, at_ms: int) -> Started:
        task, owner = execution.task, owner_of(execution.task)
        return Started(owner.workflow, owner.node, owner.fence, task.publication, self._agent_id, task.attempt, at_ms)

    # -- long ones ----------------------------------------------------------------------------------------

    def _grown_long(self, execution: Execution) -> None:
        self._background.start(self.acked_early(execution), name="let go")

    async def acked_early(self, execution: Execution) -> None:
        """Report to the owner that a long task still runs, and acknowledge the task's deliveries early.

        A task that was granted and still waits is not reported: its owner knows from the acquire request which agent
        has it.
        """
        await self._report_starts({execution: self._clock.now_ms()}, owner_of(execution.task).origin)
        if execution not in self._reported or self.stages.get(execution) is Stage.GIVEN_BACK:
            return  # what is given back still needs its delivery
        execution.ack_early()
        log.info("A long task goes on without its delivery", extra={"task_id": execution.task.id})

    def _beat(self) -> None:
        self._reports.alive([owner_of(execution.task) for execution in self._reported])
        self._beat_at = self._loop.call_later(BEAT_SECONDS, self._beat) if self._reported else None
