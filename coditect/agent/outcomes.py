"""The choice of what an ended attempt leads to: another attempt, a dead letter, or a reply.

A task without an owner is tried again while attempts are left, and becomes a dead letter when they are used up. A
workflow task's owner gets a report of every end, and decides. The delivery is acknowledged last.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coditect.agent.declaration import Capability
from coditect.agent.execution import ANSWERING, POSTED, Execution, Remembered
from coditect.agent.handler import AttemptOutcome, HandedBack, SentBack, asked_seconds, failure_of
from coditect.agent.managed import ManagedTasks
from coditect.agent.owners import NoOwner
from coditect.agent.settlement import (
    SENT_BACK_SECONDS,
    SETTLE_PUBLISH_SECONDS,
    Settler,
    not_settled,
    settle_or_return,
    worth_another,
)
from coditect.broker.port import Broker, Promise
from coditect.errors import CoditectError, NotFound, Overloaded, Retryable, SetupError, Unroutable
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.model.prediction import Predictor, RecentOutcomes, TaskKind, task_kind, unknown
from coditect.model.result import ENDED_AS, Failure, Outcome, Status
from coditect.model.task import Task
from coditect.telemetry.metrics import (
    ATTEMPTS,
    QUEUE_WAIT,
    REPLIES_UNCLAIMED,
    TASK_ERRORS,
    TASK_REQUESTS,
    TASK_SECONDS,
    TASK_TIMEOUTS,
    Counter,
    Histogram,
    Metrics,
)
from coditect.telemetry.tracing import ended_with
from coditect.wire import routing, tasks
from coditect.wire.json import dumps
from coditect.wire.routing import ReturnAddresses
from coditect.wire.tasks import input_features

log = logging.getLogger(__name__)

OWNER_SECONDS = 10.0
"""The average delay of a workflow task that is sent back because too many tasks wait for the same owner."""
TRACEBACK_SECONDS = 1.0
FULL_REPLIES_SECONDS = 2.0
FULL_PAUSE_SECONDS = 0.1
MOST_FULL = 1_000
SHOWN_ERROR_CHARACTERS = 500
"""Number of characters of an exception's message in a log line."""


@dataclass(eq=False, slots=True)
class RememberedAnswer:
    """The receiver of the confirm or error of a completed task's posted reply, which it passes on to a callback."""

    execution: Execution
    outcome: Outcome
    on_end: Callable[[RememberedAnswer, BaseException | None], None]
    """The callback that is called once, with the error of the publish, or None after a confirm."""
    over: bool = False

    def done(self) -> bool:
        """Tell whether the reply's publish is over, by a confirm or a failure."""
        return self.over

    def set_result(self, _: None) -> None:
        """Note that the broker confirmed the reply, and call the callback, with None in place of an error."""
        self.over = True
        self.on_end(self, None)

    def set_exception(self, exception: BaseException) -> None:
        """Note that the publish of the reply failed, and call the callback with the error."""
        self.over = True
        self.on_end(self, exception)


class Replies:
    """The publisher of replies of one agent process, which precede the acknowledgement of a delivery."""

    def __init__(self, broker: Broker, events: Events, metrics: Metrics, *, addresses: ReturnAddresses) -> None:
        self._broker, self._events, self.addresses = broker, events, addresses
        self.unclaimed = metrics.counter(REPLIES_UNCLAIMED)
        self.full_since: OrderedDict[routing.Address, float] = OrderedDict()
        """The receivers whose reply queue is full, each with the event loop's time at which that was first seen."""

    def post(self, task: Task, outcome: Outcome, promise: Promise) -> None:
        """Post a task's reply without waiting; its error or confirm (at once without an address) goes to `promise`.

        `send` must handle an error of the post.
        """
        address = self._address(task)
        if address is None:
            promise.set_result(None)
            return
        self._broker.post(
            tasks.result_message(outcome, capability=task.capability),
            promise,
            exchange=address.exchange,
            routing_key=address.routing_key,
            timeout_seconds=SETTLE_PUBLISH_SECONDS,
            wait_when_full=False,
        )

    def taken(self, task: Task) -> None:
        """Note that the broker took a reply to a task, so that the task's reply queue is not full any more."""
        if (address := self.addresses.find(task.reply_to)) is not None:
            self.full_since.pop(address, None)

    async def send(self, task: Task, outcome: Outcome, failed: BaseException | None = None) -> None:
        """Send a reply to the task's return address, if any, and await the confirm; drop one that has no receiver.

        The outcome must carry the task's own correlation id. A reply that no queue takes, or that the broker's
        permissions forbid, has no receiver: it is counted, published as an event, and dropped. A reply whose exchange
        is missing waits until the exchange exists again. `failed` is the error of the first try, if there was one.

        Raises:
            Retryable: when the broker as a whole cannot take the reply.
            SetupError: when the broker refuses the publish for another reason than the address.
            Exception: any error of the publish that is not a CoditectError.
        """
        address = self._address(task)
        if address is None:
            return
        message = tasks.result_message(outcome, capability=task.capability)
        while True:
            try:
                if failed is not None:
                    error, failed = failed, None
                    raise error
                await self._broker.publish(
                    message,
                    exchange=address.exchange,
                    routing_key=address.routing_key,
                    timeout_seconds=SETTLE_PUBLISH_SECONDS,
                    wait_when_full=False,
                )
            except CoditectError as error:
                if self._may_try_again(task, address, error):
                    await asyncio.sleep(FULL_PAUSE_SECONDS)
                    continue
            else:
                self.full_since.pop(address, None)
            return

    def _may_try_again(self, task: Task, address: routing.Address, error: CoditectError) -> bool:
        """Tell whether to send a failed reply again; if not, drop it, or raise an error that the broker caused.

        Raises:
            CoditectError: the given error, when the trouble is the broker's and not the receiver's.
        """
        match error:
            case Overloaded() if not self._broker.blocked:  # an alarm of the broker says nothing about the receiver
                if self._may_wait(address):
                    return True
            case NotFound() if address.exchange:
                log.error("An answer waits for the exchange of the replies", extra={"reason": str(error)})
                return True  # `publish` has waited already; it is there again when somebody makes it
            case SetupError() if self.addresses.refused(address, error):
                log.warning("Only what `coditect.replies` takes is answered", extra={"reason": str(error)})
            case Retryable() | SetupError():
                raise error
        self._unclaimed(task, error)
        return False

    def _address(self, task: Task) -> routing.Address | None:
        """Return the return address of a task; None when it has none, or the address may not be answered."""
        address = self.addresses.find(task.reply_to)
        if address is None or address.exchange or self.addresses.reachable(address):
            return address
        self._unclaimed(task, SetupError("The broker's permissions do not allow it", entity=address.routing_key))
        return None

    def _may_wait(self, address: routing.Address) -> bool:
        """Tell whether a reply may wait for space in its queue: in the first 2 s after the queue was found full.

        The time is FULL_REPLIES_SECONDS, for all replies to the queue together. The deliveries that wait for the
        queue take places that all tasks need.
        """
        now = asyncio.get_running_loop().time()
        since = self.full_since.setdefault(address, now)
        if len(self.full_since) > MOST_FULL:
            self.full_since.popitem(last=False)
        return now - since < FULL_REPLIES_SECONDS

    def _unclaimed(self, task: Task, error: CoditectError) -> None:
        self.unclaimed.value += 1
        self._events.emit("task.unclaimed", subject=task.id or "", reply_to=task.reply_to)
        log.info("A reply has no receiver any more", extra={"task_id": task.id, "reason": str(error)})


class Outcomes:
    """The settlement of one agent process's executions: chooses, publishes and remembers their outcomes."""

    def __init__(
        self,
        settler: Settler,
        replies: Replies,
        events: Events,
        metrics: Metrics,
        end: Callable[[Execution], None],
        *,
        agent_id: AgentId,
        capabilities: Mapping[str, Capability],
        managed: ManagedTasks,
    ) -> None:
        """Prepare to settle an agent's executions; call `end` with each execution whose posted reply is settled."""
        self.tracebacks = True
        """Whether results carry tracebacks."""
        self.managed, self._end = managed, end
        self._events = events
        self._clock = settler.clock
        self._agent_id = agent_id
        self._capabilities = capabilities
        self.settler, self.replies = settler, replies
        self._remembered = Remembered()
        self._next_traceback: dict[str, float] = {}
        """The instant from which the next traceback may be logged, by capability."""
        self.known = self._remembered.get
        """The outcome of an execution key, if the execution ended here in the last ten minutes; else None.

        The failed attempt of a task without an owner has none: the task is published again as another execution.
        """
        self.attempts = AttemptMetrics(metrics, capabilities)
        """The metrics of attempts by capability."""
        self.completed = 0
        self.failed = 0
        """The number of tasks that failed here for good, were refused or canceled; a handoff is none of these."""
        self.failed_attempts = 0
        """The number of attempts that did so, retried ones among them."""
        self._all_completed = metrics.counter(ATTEMPTS, outcome="completed")  # of all agents of the process
        self._all_failed = metrics.counter(ATTEMPTS, outcome="failed")

    async def send_back(self, execution: Execution, *, within_seconds: float = SENT_BACK_SECONDS) -> None:
        """Send a task back unchanged, even if its attempt was broken off, after a random delay; ack its deliveries."""
        await self.settler.send_back(execution.task, execution.delivery.message.headers, within_seconds)
        execution.ack()

    async def hand_back(self, execution: Execution, back: SentBack) -> None:
        """Send a task back whose attempt was refused or broken off: through a retry-delay queue, or by its owner.

        A workflow task that a breaker, a rate, a key or a missing HTTP connection refused goes by its owner, any other
        task through the queue.

        The owner publishes the task again under the same attempt, after as long a delay.
        """
        if isinstance(back, HandedBack) and execution.task.owner is not None:
            delay_ms = round(2000 * SENT_BACK_SECONDS * self._clock.chance())
            await self.managed.begin_again(execution, delay_ms=delay_ms)
        else:
            await self.send_back(execution)

    def post(self, execution: Execution, ended: AttemptOutcome, started_ms: int, finished_ms: int) -> None:
        """Record that a task completed, and post its reply without waiting; its confirm or error is handled later."""
        outcome = self._completed(execution, ended, started_ms, finished_ms)
        answer = RememberedAnswer(execution, outcome, self._confirmed)
        execution.enter(POSTED)  # before the post, which may know its outcome at once
        try:
            if execution.task.owner is not None:
                self.managed.post(execution, outcome, answer)
            else:
                self.replies.post(execution.task, outcome, answer)
        except Exception as error:  # noqa: BLE001 - judged as the error of a publish
            answer.set_exception(error)

    def _completed(self, execution: Execution, ended: AttemptOutcome, started_ms: int, finished_ms: int) -> Outcome:
        task = execution.task
        outcome = self._outcome(task, ended, started_ms, finished_ms)
        self.completed += 1
        self._all_completed.value += 1
        if execution.key is not None:
            self._remembered.put(execution.key, outcome)
        if task.owner is None:  # a workflow task's events are its owner's
            self._events.emit_attempt("task.completed", task, finished_ms, self._agent_id)
            if task.attempt > 1:
                self._events.emit_attempt("attempt.recovered", task, finished_ms, self._agent_id)
        return outcome

    def _confirmed(self, answer: RememberedAnswer, failed: BaseException | None) -> None:
        """Ack a task after its posted reply's confirm; repeat a failed reply or answer redeliveries in the background.

        The confirm or error is that of a posted reply; what goes on does so in an asyncio task.
        """
        execution = answer.execution
        if failed is None:
            task = execution.task
            if task.owner is not None:
                self.managed.heard(task.owner.origin)
            elif self.replies.full_since:
                self.replies.taken(task)
            execution.delivery.ack()
            if execution.attached is None:
                self._end(execution)
                return
        execution.enter(ANSWERING)
        execution.work = asyncio.get_running_loop().create_task(self._answer_on(execution, answer.outcome, failed))

    async def _answer_on(self, execution: Execution, outcome: Outcome, failed: BaseException | None) -> None:
        """Finish an execution after its posted reply: repeat a failed reply, or answer the attached redeliveries."""
        try:
            if failed is not None:
                await self.answer(execution, outcome, failed)
            else:
                await self._answer_attached(execution, outcome)
        except BaseException as error:  # noqa: BLE001 - told in full, or raised again
            await self.unsettled(execution, error)
        finally:
            self._end(execution)

    async def answer(self, execution: Execution, outcome: Outcome, failed: BaseException | None = None) -> None:
        """Send a task's reply, or report to its owner, then acknowledge its deliveries; `failed`: a first try's error.

        Raises:
            CoditectError: any error of `Broker.publish`; the deliveries are not settled then.
        """
        if execution.task.owner is not None:
            await self.managed.report(execution, outcome, failed=failed)
            return
        await self.replies.send(execution.task, outcome, failed)
        execution.delivery.ack()
        await self._answer_attached(execution, outcome)

    async def _answer_attached(self, execution: Execution, outcome: Outcome) -> None:
        """Reply to each attached redelivery of a direct task and ack it; ack those of a workflow task without a reply.

        Raises:
            CoditectError: any error of `Broker.publish`; the deliveries that were not answered are not settled then.
        """
        if execution.task.owner is not None:
            execution.ack()
            return
        answered = 0
        while execution.attached is not None and answered < len(execution.attached):  # more may come meanwhile
            wanting, delivery = execution.attached[answered]
            await self.replies.send(wanting, for_another(outcome, wanting))
            delivery.ack()
            answered += 1

    async def settle(self, execution: Execution, ended: AttemptOutcome, started_ms: int, finished_ms: int) -> None:
        """Publish an attempt's retry, or its reply and any dead letter, or a report to its owner; then ack the task.

        Raises:
            CoditectError: any error of `Broker.publish`; the deliveries are not settled then.
        """
        task = execution.task
        if task.owner is not None:
            await self._report(execution, ended, started_ms, finished_ms)
            return
        if ended.status is Status.COMPLETED:
            await self.answer(execution, self._completed(execution, ended, started_ms, finished_ms))
            return
        if ended.failure is not None and ended.status is not Status.CANCELED:
            known = {"capability": task.capability, "agent": self._agent_id, "attempt": task.attempt}
            self._events.emit("attempt.failed", subject=task.id or "", **known, **ended.failure.as_event())
        if await self._retried(execution, ended):
            return
        self._log_failure(task, ended)
        outcome = self._outcome(task, ended, started_ms, finished_ms)
        self._count_failure()
        if ended.status in (Status.FAILED, Status.REJECTED) and ended.failure is not None:
            await self._bury(execution, ended.failure)
        self._events.emit_attempt(ENDED_AS[ended.status], task, finished_ms, self._agent_id)
        await self.answer(execution, outcome)

    def _outcome(self, task: Task, ended: AttemptOutcome, started_ms: int, finished_ms: int) -> Outcome:
        failure = ended.failure
        if failure is not None and not self.tracebacks:
            failure = replace(failure, traceback="")  # its log and its dead letter have it
        return Outcome(
            ended.status,
            ended.body if failure is None else dumps(failure.as_json()),
            task.id,
            task.correlation_id or task.id,
            self._agent_id,
            task.attempt,
            task.owner.fence if task.owner is not None else None,
            started_ms,
            finished_ms,
            failure,
            ended.claims,
            binary=ended.binary,
        )

    async def _report(self, execution: Execution, ended: AttemptOutcome, started_ms: int, finished_ms: int) -> None:
        """Report the end of a workflow task to its owner, with the retry and delay that the retry policy wants."""
        task, failure, retry_ms = execution.task, ended.failure, None
        if ended.status is Status.FAILED and failure is not None:
            policy = self._capabilities[task.capability].retry
            failure = replace(failure, retryable=worth_another(ended.error, policy))
            if failure.retryable and task.attempt < policy.max_attempts:
                asked = asked_seconds(ended.error)
                drawn = policy.delay_seconds(task.attempt, self._clock.chance()) if asked is None else asked
                retry_ms = round(1000 * drawn)
        if failure is None:
            outcome = self._completed(execution, ended, started_ms, finished_ms)
        else:
            if not execution.handed_off:
                self._count_failure(retried=retry_ms is not None)
            self._log_failure(task, ended, **({} if retry_ms is None else {"delay_ms": retry_ms}))
            outcome = self._outcome(task, replace(ended, failure=failure), started_ms, finished_ms)
            outcome = replace(outcome, retry_ms=retry_ms)
            if execution.key is not None and self.known(execution.key) is None:  # the report may be lost
                self._remembered.put(execution.key, outcome)
        await self.managed.report(execution, outcome)

    async def _retried(self, execution: Execution, ended: AttemptOutcome) -> bool:
        task = execution.task
        policy = self._capabilities[task.capability].retry
        attempts = min(task.limits.max_attempts or policy.max_attempts, policy.max_attempts)
        if (
            ended.status is not Status.FAILED
            or ended.failure is None
            or task.attempt >= attempts
            or not worth_another(ended.error, policy)
            or (task.limits.deadline_ms is not None and task.limits.deadline_ms <= self._clock.now_ms())
        ):
            return False
        self._count_failure(retried=True)
        delay_ms = await self.settler.retry(execution, ended, ended.failure, policy)
        self._log_failure(task, ended, of=attempts, delay_ms=delay_ms)
        execution.ack()
        return True

    def _count_failure(self, *, retried: bool = False) -> None:
        self.failed += not retried
        self.failed_attempts += 1
        self._all_failed.value += 1

    def _log_failure(self, task: Task, ended: AttemptOutcome, **retry: int) -> None:
        """Log a failed attempt in one line, with the traceback at most once a second for each capability."""
        failure = ended.failure
        if failure is None or ended.error is None or ended.status is not Status.FAILED:
            return
        error = f"{failure.type}: {failure.message[:SHOWN_ERROR_CHARACTERS]}"
        facts = {"task_id": task.id, "capability": task.capability, "attempt": task.attempt, **retry, "error": error}
        if (now := asyncio.get_running_loop().time()) >= self._next_traceback.get(task.capability, 0.0):
            self._next_traceback[task.capability] = now + TRACEBACK_SECONDS
            facts["traceback"] = failure.traceback
        if retry:
            log.warning("An attempt failed; the task is tried again", extra=facts)
        else:
            log.error("A task failed", extra=facts)

    async def _bury(self, execution: Execution, failure: Failure) -> None:
        task, delivery = execution.task, execution.delivery
        errors = (*task.errors, self.settler.history(execution, failure))
        try:
            burial = self.settler.bury(
                delivery.message, routing.key_of(task), failure, attempt=task.attempt, errors=errors
            )
            span = self.settler.begin_burial(execution)
            await (burial if span is None else ended_with(span, burial))
        except Unroutable as error:
            log.error("A capability has no dead queue; the broker keeps the task", extra={"reason": str(error)})
            delivery.reject()

    async def unsettled(self, execution: Execution, error: BaseException) -> None:
        """Settle an execution after a runtime error; if that fails or is canceled, requeue its deliveries and raise."""
        try:
            await self._settle_failed(execution, error)
        except BaseException:
            execution.requeue()
            raise

    async def _settle_failed(self, execution: Execution, error: BaseException) -> None:
        """Settle an execution after an error outside its handler: as failed for a bug, else by return or dead letter.

        Trouble of the broker or the set-up is no fault of the task: its deliveries go back unchanged.
        """
        delivery = execution.delivery
        if isinstance(error, SentBack):  # a workflow task, which waits for its owner's word
            await settle_or_return(self.send_back(execution, within_seconds=OWNER_SECONDS), delivery, execution)
        elif isinstance(error, NoOwner):
            await settle_or_return(self._disown(execution, error), delivery, execution)
        elif isinstance(error, Retryable | SetupError | NotFound | Unroutable):
            await not_settled(error, delivery, execution)
        elif isinstance(error, Exception):
            log.error("The runtime failed on a task", exc_info=error, extra={"task_id": execution.task.id})
            failure = replace(Failure.from_error(error, "not_settled"), retryable=True)
            now = self._clock.now_ms()
            ended = AttemptOutcome(Status.FAILED, failure=failure, error=error)
            await settle_or_return(self.settle(execution, ended, now, now), delivery, execution)
        else:
            raise error

    async def _disown(self, execution: Execution, error: NoOwner) -> None:
        """Make a dead letter of a task whose owner does not exist: no owner can take its result or grant its start."""
        self._count_failure()
        log.info("A task names an owner that does not exist", extra={"task_id": execution.task.id} | error.facts)
        await self._bury(execution, failure_of(error, "no_owner"))
        execution.ack()


def for_another(outcome: Outcome, task: Task) -> Outcome:
    """Return the outcome with the correlation id of the task of a repeated delivery, to answer that delivery."""
    return replace(outcome, correlation_id=task.correlation_id or task.id)


TIMEOUT_REASON = "timeout"
"""The reason of the failure of an attempt that its time limit ended."""


@dataclass(frozen=True, slots=True)
class _Measured:
    seconds: Histogram
    errors: Counter
    timeouts: Counter
    waited: Histogram


class AttemptMetrics:
    """The metrics of an agent's attempts, by capability, and recent outcomes of tasks that senders picked it for."""

    def __init__(self, metrics: Metrics, capabilities: Mapping[str, Capability]) -> None:
        self.predictor = Predictor()
        """What was learned from those tasks by the features of their inputs, of capabilities that name any."""
        self._features = {name: capability.spec.features for name, capability in capabilities.items()}
        self._measured = {
            name: _Measured(
                metrics.histogram(TASK_SECONDS, capability=name),
                metrics.counter(TASK_ERRORS, capability=name),
                metrics.counter(TASK_TIMEOUTS, capability=name),
                metrics.histogram(QUEUE_WAIT, capability=name),
            )
            for name in capabilities
        }
        for name, measured in self._measured.items():
            metrics.observe(TASK_REQUESTS, measured.seconds.number, capability=name)
        self._recent: dict[TaskKind, tuple[RecentOutcomes, int]] = {}
        """The recent outcomes by kind of task, with the time of the last in milliseconds."""

    def recent(self, now_ms: int) -> tuple[RecentOutcomes, ...]:
        """Return the recent outcomes of the tasks that senders picked this agent for, by capability and input size."""
        return tuple(outcomes.faded(max(0, now_ms - last_ms) / 1000) for outcomes, last_ms in self._recent.values())

    def ended(self, execution: Execution, ended: AttemptOutcome, started_ms: int, ran_seconds: float) -> None:
        """Record one ended attempt in the metrics: its run time, its failure, and at attempt 1 its wait in the queue.

        The attempt began at `started_ms`, and ran for `ran_seconds`. If the sender picked this agent for the task, the
        end counts among the recent outcomes. A task that another agent has accepted counts as run, and as no failure.
        """
        task = execution.task
        if execution.picked:
            self._learn(task, ended, started_ms, ran_seconds)
        measured = self._measured[task.capability]
        measured.seconds.record(ran_seconds)
        if task.attempt == 1 and task.published_at_ms is not None:
            measured.waited.record(max(0, started_ms - task.published_at_ms) / 1000)
        if ended.failure is not None and not execution.handed_off:
            measured.errors.value += 1
            measured.timeouts.value += ended.failure.reason == TIMEOUT_REASON

    def _learn(self, task: Task, ended: AttemptOutcome, started_ms: int, ran_seconds: float) -> None:
        """Add an attempt to the recent outcomes, unless it was canceled or refused, which is not the agent's doing."""
        if ended.status is Status.COMPLETED or ended.status is Status.FAILED:
            kind = task_kind(task.capability, None if task.claims else len(task.body))
            ran_ms, completed = ran_seconds * 1000, ended.status is Status.COMPLETED
            now_ms = started_ms + round(ran_ms)
            outcomes, last_ms = self._recent.get(kind, (unknown(kind), now_ms))
            outcomes = outcomes.faded(max(0, now_ms - last_ms) / 1000)
            self._recent[kind] = outcomes.after(ran_ms, completed=completed), now_ms
            if features := input_features(self._features[task.capability], None if task.claims else task.body):
                self.predictor.learn(task.capability, features, ran_ms, completed=completed, now_ms=now_ms)
