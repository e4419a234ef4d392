"""The settlement of deliveries that start no execution: refused, expired, canceled, or answered before."""

from __future__ import annotations

from contextlib import suppress

from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandlerEnd
from coditect.agent.requeue import guarded
from coditect.agent.settlement.outcomes import Outcomes, for_another
from coditect.agent.settlement.settle import Settler
from coditect.agent.workflow_tasks.acquire import NoOwner
from coditect.aio.clock import Clock
from coditect.broker.port import Delivery
from coditect.errors import InputError, InvalidTask, TooLarge, Unroutable
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Task
from coditect.wire import routing, tasks
from coditect.wire.json import dumps


class Unstarted:
    """The settlement of one agent process's deliveries that start no execution."""

    def __init__(self, outcomes: Outcomes, settler: Settler, clock: Clock, *, agent_id: AgentId) -> None:
        self._outcomes = outcomes
        self._settler = settler
        self._clock = clock
        self._agent_id = agent_id

    async def not_ours(self, delivery: Delivery, task: Task) -> None:
        """Settle a task that the agent cannot take: move it from the agent's own queue to its capability's, or refuse.

        The agent does not offer the capability, or a guard holds up a task of the own queue. A task from any other
        queue is refused.
        """
        if routing.queue_key(delivery.queue) is None:
            delivery.reject()
        else:
            await self.refuse(delivery, InvalidTask("The CC header names another capability", given=task.capability))

    async def settle_unstarted(self, task: Task, delivery: Delivery, ended: HandlerEnd) -> None:
        """Settle the delivery of a task that must not start, as expired, canceled or refused."""
        now = self._clock.now_ms()
        execution = Execution(task, delivery, task.execution_key)
        await guarded(self._outcomes.settle(execution, ended, now, now), delivery)

    async def answer_again(self, task: Task, delivery: Delivery, outcome: Outcome) -> None:
        """Reply to a repeated delivery with the remembered outcome, and acknowledge the delivery."""

        async def tell() -> None:
            await self._settler.reply(task, for_another(outcome, task))
            delivery.ack()

        await guarded(tell(), delivery)

    async def refuse(self, delivery: Delivery, error: InputError) -> None:
        """Refuse an invalid task: publish a dead letter and a reply, or report to its owner.

        A task from a queue of this agent alone goes to the capability's queue instead, where it is refused.
        """
        reason = "too_large" if isinstance(error, TooLarge) else "invalid_task"
        failure = Failure(
            reason,
            type(error).__name__,
            str(error),
            fix=str(error.facts.get("fix", "see docs/wire.md for what a task may carry")),
        )
        await guarded(self._bury_and_answer(delivery, failure), delivery)

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
                await self._outcomes.settle(
                    Execution(task, delivery, None), HandlerEnd(Status.REJECTED, failure=failure), now, now
                )
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
        outcome = Outcome(
            Status.REJECTED,
            dumps(failure.as_json()),
            message.message_id,
            message.correlation_id or message.message_id,
            self._agent_id,
            failure=failure,
        )
        await self._settler.reply(anonymous, outcome)
        delivery.ack()
