"""A scripted owner of tasks: as much of a dispatcher as an agent sees of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coditect.aio.clock import Clock, SystemClock
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import base_topology, shard_queues
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import NO_HEADERS, Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import NO_LIMITS, Limits, Owner, Task
from coditect.wire import routing, tasks
from coditect.wire.control import (
    PROGRESS_TYPE,
    STARTED_TYPE,
    Progress,
    Started,
    Verb,
    read_progress,
    read_request,
    read_started,
)
from coditect.wire.json import dumps, loads
from coditect.wire.routing import pinned_message
from coditect.wire.tasks import OutcomeReport, read_outcome_report
from coditect.wire.workflow_tasks import RESULTS_TYPE, Claim, Verdict, read_results

Answer = Claim | Failure | None
Decide = Callable[[dict[str, Any]], Answer]
WORKFLOW = "0190-flow"


@dataclass(slots=True)
class ScriptedOwner:
    """The owner of one shard: publishes nodes, writes down what it is told, and answers claims as it was told to."""

    broker: Broker
    shard: int = 0
    clock: Clock = field(default_factory=SystemClock)
    decide: Decide = lambda _: None
    """The answer to a claim; None leaves it unanswered."""
    results: list[OutcomeReport] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    claim_ids: list[str | None] = field(default_factory=list)
    reports: int = 0
    """Messages with starts."""
    _consumers: list[Consumer] = field(default_factory=list)
    _answers: set[asyncio.Task[None]] = field(default_factory=set)

    async def open(self) -> None:
        """Declares the shard's queues and listens to them."""
        await self.broker.declare(base_topology() + shard_queues(self.shard))
        for queue, take in zip(self._queues, (self._told, self._asked), strict=True):
            self._consumers.append(await self.broker.consume(queue, take, prefetch=100))

    async def leave(self) -> None:
        """The shard has nobody any more, and no queues."""
        while self._consumers:
            await self._consumers.pop().cancel()
        for queue in self._queues:
            await self.broker.delete_queue(queue)

    @property
    def _queues(self) -> tuple[str, str]:
        return routing.results_queue(self.shard), routing.control_queue(self.shard)

    async def publish(
        self,
        capability: str,
        value: Any = None,
        *,
        node: str = "work",
        publication: int = 1,
        fence: int = 1,
        attempt: int = 1,
        age_ms: int = 0,
        limits: Limits = NO_LIMITS,
        errors: tuple[Any, ...] = (),
        headers: Mapping[str, Any] = NO_HEADERS,
        to: AgentId | None = None,
    ) -> str:
        """Publishes one attempt of a node; `age_ms` pretends that this was a while ago. Gives the task's id.

        `headers` are the broker's; `to` an agent's own queue, instead of the capability's.
        """
        task = Task(
            capability,
            Priority.P1,
            dumps(value),
            id=TaskId(f"{WORKFLOW}:{node}"),
            limits=limits,
            attempt=attempt,
            publication=publication,
            published_at_ms=self.clock.now_ms() - age_ms,
            errors=errors,
            owner=Owner(WORKFLOW, node, str(self.shard), fence),
        )
        message = tasks.task_message(task)
        message = replace(message, headers={**message.headers, **headers})
        if to is None:
            await self.broker.publish(message, exchange=routing.SUBMIT, routing_key=routing.key_of(task))
        else:
            message = pinned_message(message, task)
            await self.broker.publish(message, exchange=routing.AGENTS, routing_key=routing.next_key(to))
        return task.id or ""

    def _told(self, delivery: Delivery) -> None:
        message = delivery.message
        match message.type:
            case tasks.RESULT_TYPE:
                self.messages.append(message)
                self.results.append(read_outcome_report(message))
            case kind if kind == RESULTS_TYPE:
                self.messages.append(message)
                self.results += read_results(message, str(self.shard))
            case kind if kind == STARTED_TYPE:
                self.reports += 1
                self.started += read_started(message)
            case kind if kind == PROGRESS_TYPE:
                self.progress += read_progress(message)
        delivery.ack()

    def _asked(self, delivery: Delivery) -> None:
        verb, body = read_request(delivery.message)
        assert verb == Verb.CLAIM
        self.claims.append(body)
        self.claim_ids.append(delivery.message.message_id)
        claim = self.decide(body)
        delivery.ack()
        if claim is not None:
            answer = asyncio.get_running_loop().create_task(self.answer(delivery.message, claim))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    async def answer(self, message: Message, answer: Claim | Failure) -> None:
        """Answers one claim."""
        status = Status.COMPLETED if isinstance(answer, Claim) else Status.REJECTED
        outcome = Outcome(status, dumps(answer.as_json()), None, message.correlation_id)
        address = routing.reply_address(message.reply_to)
        assert address is not None
        await self.broker.publish(
            tasks.result_message(outcome, capability=Verb.CLAIM.value),
            exchange=address.exchange,
            routing_key=address.routing_key,
        )

    @property
    def values(self) -> list[Any]:
        """What the results brought."""
        return [loads(one.outcome.body) for one in self.results]


def granting(fence: int = 7, attempt: int = 1, *, suspect: bool = False) -> Decide:
    """Grants every claim alike."""
    return lambda _: Claim(Verdict.RUN, fence, attempt, suspect)


def saying(verdict: Verdict) -> Decide:
    """Answers every claim alike."""
    return lambda _: Claim(verdict)
