"""The admission of tasks: which delivery starts an execution in this process, and how all others are settled.

A delivery starts nothing when it is unreadable, repeats a task that runs or ran here, or brings a task that must not
start: expired, canceled, for another agent, or without a needed approval. Such a delivery is settled in the background
and takes no slot.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from coditect.agent.declaration import Capability
from coditect.agent.execution import Execution
from coditect.agent.guards import Guards
from coditect.agent.handler import AttemptOutcome, failure_of, unstartable
from coditect.agent.intake import Intake, QueueCredit
from coditect.agent.outcomes import Outcomes, for_another
from coditect.agent.owners import NoOwner
from coditect.agent.settlement import Pacing, settle_or_return
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Delivery
from coditect.errors import InputError, InvalidTask, TooLarge, Unroutable
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.result import NOT_TAKEN, Failure, Outcome, Status
from coditect.model.task import NO_LIMITS, ExecutionKey, Limits, Task
from coditect.registry.port import ReferenceClock
from coditect.wire import routing, tasks
from coditect.wire.control_messages import Cancel
from coditect.wire.json import dumps

if TYPE_CHECKING:
    from coditect.agent.approvals import AgentApprovals

MAX_CANCELED_IDS = 10_000
CANCELED_ID_SECONDS = 600.0
"""How long a cancel message bars a task that has not arrived yet."""


class Admission:
    """The admission of tasks to one agent process, with the executions that run and the cancel messages it knows."""

    def __init__(
        self,
        outcomes: Outcomes,
        guards: Guards,
        intake: Intake,
        clock: ReferenceClock,
        background: Supervisor,
        *,
        agent_id: AgentId,
        capabilities: Mapping[str, Capability],
        approvals: AgentApprovals | None,
    ) -> None:
        self._outcomes, self._settler, self._guards, self._intake = outcomes, outcomes.settler, guards, intake
        self._clock, self._background, self._now = clock, background, asyncio.get_running_loop().time
        self._agent_id, self._capabilities = agent_id, capabilities
        self._addresses, self._approvals = outcomes.replies.addresses, approvals
        self._long = frozenset(name for name, capability in capabilities.items() if capability.spec.long)
        self._may_refuse = bool(self._long) or approvals is not None
        """Whether a task without limits of its own may be refused."""
        self.pacing = Pacing()
        self.canceled = CanceledIds()
        self.running: dict[ExecutionKey, Execution] = {}
        """The executions that run, by the key that all deliveries of their task share."""
        self.settling: dict[asyncio.Task[Any], None] = {}
        """The asyncio tasks that settle deliveries in the background; a drain waits for them."""

    def screen(self, delivery: Delivery, credit: QueueCredit) -> Execution | None:
        """Return a delivery's execution if its task needs a slot; else deal with the delivery, and return None."""
        try:
            task = tasks.read_task(delivery.message, delivery.routing_key)
            if task.limits is not NO_LIMITS:
                task = by_agent_clock(task, delivery.message, self._clock)
            self._addresses.check(task.reply_to)
        except InputError as error:
            self.settle_beside(self._refuse(delivery, error))
            return None
        capability = self._capabilities.get(task.capability)
        if capability is None or (capability.guarded and self._held_up(task, delivery)):
            self.settle_beside(self._not_ours(delivery, task))
            return None
        key = task.execution_key
        if (task.limits.only and self._is_for_another(task, delivery)) or self.joined(task, key, delivery):
            return None
        if task.attempt > 1 and self.pacing.for_another(task, delivery):
            self.settle_beside(self._intake.give_back(task, delivery))
            return None
        ended = self.barred(task) if task.owner is None else None  # of a workflow task a claim comes first
        if ended is not None:
            self.settle_beside(self._settle_unstarted(task, delivery, ended))
        elif capability.fallback and (diverting := self._guards.breakers.divert(capability, task, delivery)):
            self.settle_beside(diverting)
        else:
            return Execution(task, delivery, key, credit.queue, self._now(), credit.own)
        return None

    def settle_beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that settles a delivery, in the background and without a slot; a drain waits for its end."""
        task = self._background.start(work, name="settle")
        self.settling[task] = None
        task.add_done_callback(self.settling.pop)

    def joined(self, task: Task, key: ExecutionKey | None, delivery: Delivery) -> bool:
        """Tell whether a delivery repeats a task that runs or ran here; then attach it, answer it, or ask its owner."""
        if key is None:
            return False
        running = self.running.get(key)
        if task.owner is not None:
            return self._rejoined(task, key, delivery, running)
        if running is not None:
            running.attach(task, delivery)
            return True
        outcome = self._outcomes.known(key)
        if outcome is not None:
            self.settle_beside(self._answer_repeated(task, delivery, outcome))
        return outcome is not None

    def _rejoined(self, task: Task, key: ExecutionKey, delivery: Delivery, running: Execution | None) -> bool:
        """Tell whether this process runs or ran a repeated workflow task; if so, ask its owner about the delivery."""
        known = partial(self._outcomes.known, key)
        if running is None and known() is None:
            return False
        self.settle_beside(self._outcomes.managed.rejoin(task, delivery, running, known))
        return True

    def barred(self, task: Task) -> AttemptOutcome | None:
        """Return the rejection or cancellation of a task that must not start; None when the task may start."""
        if task.limits is NO_LIMITS and not (self._may_refuse or self.canceled.reasons):
            return None
        if self._approvals is not None and (refusal := self._approvals.refusal(task)) is not None:
            return AttemptOutcome(Status.REJECTED, failure=refusal)
        canceled = self.canceled.reason(task, self._now())
        return unstartable(task, self._clock, long=task.capability in self._long, canceled=canceled)

    def _held_up(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether a task of the agent's own queue must go to its capability's queue: a breaker or rate bars it."""
        name, guards = task.capability, self._guards
        held = name in guards.breakers.waiting or name in guards.rates.waiting
        return held and routing.queue_key(delivery.queue) is None

    def _is_for_another(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether another agent alone may run a task; then answer that the agent did not take it.

        Any agent runs a task without a reply queue: its sender would not hear that it went to the wrong one.
        """
        if task.limits.only == self._agent_id or not task.reply_to:
            return False
        self.settle_beside(self._answer_repeated(task, delivery, self._rejection(task, NOT_TAKEN)))
        return True

    def _rejection(self, task: Task, failure: Failure) -> Outcome:
        """Return the outcome of a task that does not run here."""
        body, correlation_id = dumps(failure.as_json()), task.correlation_id or task.id
        return Outcome(Status.REJECTED, body, task.id, correlation_id, self._agent_id, failure=failure)

    # -- deliveries that start nothing ----------------------------------------------------------------------

    async def _not_ours(self, delivery: Delivery, task: Task) -> None:
        """Settle a task that the agent cannot take: move it from the agent's own queue to its capability's, or refuse.

        The agent does not offer the capability, or a guard holds up a task of the own queue. A task from any other
        queue is refused.
        """
        if routing.queue_key(delivery.queue) is None:
            delivery.reject()
        else:
            await self._refuse(delivery, InvalidTask("The CC header names another capability", given=task.capability))

    async def _settle_unstarted(self, task: Task, delivery: Delivery, ended: AttemptOutcome) -> None:
        """Settle the delivery of a task that must not start, as expired, canceled or refused."""
        now = self._clock.now_ms()
        execution = Execution(task, delivery, task.execution_key)
        await settle_or_return(self._outcomes.settle(execution, ended, now, now), delivery)

    async def _answer_repeated(self, task: Task, delivery: Delivery, outcome: Outcome) -> None:
        """Reply to a delivery with an outcome that is known without a run, and acknowledge the delivery."""

        async def answer() -> None:
            await self._outcomes.replies.send(task, for_another(outcome, task))
            delivery.ack()

        await settle_or_return(answer(), delivery)

    async def _refuse(self, delivery: Delivery, error: InputError) -> None:
        """Refuse an invalid task: publish a dead letter and a reply, or report to its owner.

        A task from a queue of this agent alone goes to the capability's queue instead, where it is refused.
        """
        reason = "too_large" if isinstance(error, TooLarge) else "invalid_task"
        failure = failure_of(error, reason, fix="see docs/wire.md for what a task may carry")
        await settle_or_return(self._bury_and_answer(delivery, failure), delivery)

    async def _bury_and_answer(self, delivery: Delivery, failure: Failure) -> None:
        message = delivery.message
        key = routing.queue_key(delivery.queue)
        if key is None:
            delivery.reject()  # the inbox hands it to the capability's queue, where its dead letters are known
            return
        capability, priority = routing.parse_task_key(key)
        owned = tasks.owner_of(message)
        if owned is not None:
            task_id = TaskId(message.message_id or "")
            task = Task(capability, priority, b"", id=task_id, owner=owned[0], publication=owned[1])
            now = self._clock.now_ms()
            with suppress(NoOwner):  # then it is a dead letter as anybody's
                rejected = AttemptOutcome(Status.REJECTED, failure=failure)
                await self._outcomes.settle(Execution(task, delivery, None), rejected, now, now)
                return
        try:
            await self._settler.bury(message, key, failure, attempt=1, errors=())
        except Unroutable:
            delivery.reject()
            return
        anonymous = Task(
            capability,
            priority,
            b"",
            id=TaskId(message.message_id) if message.message_id else None,
            correlation_id=message.correlation_id,
            reply_to=message.reply_to,
        )
        await self._outcomes.replies.send(anonymous, self._rejection(anonymous, failure))
        delivery.ack()


class CanceledIds:
    """The latest cancel messages by task id, for ten minutes at most; deliveries to which one applies do not start.

    A workflow task may be published again under the same id, so only publications up to a number count as canceled.
    """

    def __init__(self) -> None:
        self.reasons: OrderedDict[str, tuple[float, Cancel]] = OrderedDict()
        """The instant and the message of each cancel, by task id, oldest first."""

    def put(self, cancel: Cancel, now: float) -> None:
        """Remember a cancel message that came at the instant `now`, in seconds of the loop's clock."""
        self.reasons[cancel.task_id] = (now, cancel)
        while self.reasons:
            since = next(iter(self.reasons.values()))[0]
            if len(self.reasons) <= MAX_CANCELED_IDS and now - since <= CANCELED_ID_SECONDS:
                break
            self.reasons.popitem(last=False)

    def reason(self, task: Task, now: float) -> str | None:
        """Return the reason of a cancel message, up to ten minutes old, that bars a task's start; None without one."""
        found = self.reasons.get(task.id or "")
        if found is None or now - found[0] > CANCELED_ID_SECONDS:
            return None
        cancel = found[1]
        return cancel.reason if cancel.means(task) and (task.owner is None or cancel.publication is not None) else None


# The correction of a task's deadline and start-by instant when the sender's and the agent's clocks differ.
#
# A limit travels as an instant beside the instant of the publication, both by the sender's clock: their difference is
# the time that was left. Two signs show that the sender's clock and this machine's differ, however well each is kept.
# One is a task that arrives before its publication. The other is a limit that is over by this machine's clock while the
# message still has an `expiration` of no more than the time that was left: the broker, which needs no clock for an
# expiration, would have dropped the message. In both cases the task counts as published now, with all of its time left.


def by_agent_clock(task: Task, message: Message, clock: Clock) -> Task:
    """Return the task with its deadline and start-by instant moved to the agent's clock, if the clocks differ."""
    published_ms, limits = task.published_at_ms, task.limits
    if published_ms is None:
        return task
    now_ms = clock.now_ms()
    age_ms = now_ms - published_ms
    if age_ms >= 0 and not _clocks_differ(limits, published_ms, message.expiration_ms, now_ms):
        return task
    here = replace(
        limits,
        deadline_ms=None if limits.deadline_ms is None else limits.deadline_ms + age_ms,
        start_by_ms=None if limits.start_by_ms is None else limits.start_by_ms + age_ms,
    )
    return replace(task, limits=here, published_at_ms=now_ms if task.owner is None else published_ms)


def _clocks_differ(limits: Limits, published_ms: int, expiration_ms: int | None, now_ms: int) -> bool:
    """Tell whether a task is too late by the agent's clock although the broker has not expired its message."""
    over = [limit for limit in (limits.deadline_ms, limits.start_by_ms) if limit is not None and limit <= now_ms]
    return expiration_ms is not None and any(expiration_ms <= limit - published_ms for limit in over)
