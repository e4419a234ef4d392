"""Acquire requests, by which an agent asks the control plane whether it may run a workflow task, before it does.

A delivery that came back, or that is not fresh any more, may have run elsewhere meanwhile, or may not be wanted any
more: its shard decides, and grants the fence under which it runs. A request keeps its id, however often it is sent;
each copy gets the same answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from coditect.agent.declaration import Capability
from coditect.agent.limits import AgentLimits
from coditect.agent.quarantine import earlier_deliveries
from coditect.aio.backoff import Backoff
from coditect.aio.clock import Clock
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Owner, Task
from coditect.wire import routing
from coditect.wire.claims import Claim, claim_body
from coditect.wire.control import Verb, request
from coditect.wire.json import loads
from coditect.wire.tasks import SENT_AGAIN

log = logging.getLogger(__name__)

FRESH_MS = 1_000
"""The age, since the publication, up to which the first delivery of a task runs without a grant."""
MOST_AHEAD_MS = 500
"""How far before its publication, by differing clocks, a delivery may arrive; if still earlier, its age is unknown."""
ANSWER_SECONDS = 5.0
"""How long an answer is awaited before the request is sent again; the first wait holds the task's slot."""
BACKOFF = Backoff(0.5, 60.0)
GIVE_UP_SECONDS = 600.0
"""How long an acquire request is repeated before the delivery goes back: the broker waits 30 minutes for its ack."""


class NoOwner(InvalidTask):
    """The error of a task whose named owner does not exist: nothing could grant its start or take its result."""


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
        broker: Broker,
        requests: Requests,
        clock: Clock,
        *,
        agent_id: AgentId,
        limits: AgentLimits | None = None,
        offered: Iterable[Capability] = (),
    ) -> None:
        self._approvals = None if limits is None else limits.approvals
        self._max_attempts = {one.name: one.retry.max_attempts for one in offered}
        self._broker = broker
        self._requests = requests
        self._clock = clock
        self._agent_id = agent_id
        self._silent: set[str] = set()
        """The shards that exist and left the last request, or the last result, without an answer."""
        self._heard: set[str] = set()
        """The shards that ever answered or took something; each has a queue, so no publisher can make this set grow."""
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
        if self._approvals is not None and self._approvals.concern(task):  # its owner may be forged
            return True
        return not -MOST_AHEAD_MS <= self._clock.now_ms() - published <= FRESH_MS

    def silent(self, origin: str) -> bool:
        """Tell whether a shard left the last request, or the last result, without an answer."""
        return origin in self._silent

    def heard(self, origin: str) -> None:
        """Note that a shard exists: it took a result, or a message about a task that runs."""
        self._heard.add(origin)

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
        most = self._max_attempts.get(task.capability)
        body = claim_body(owner, publication=task.publication, agent=self._agent_id, running=running, max_attempts=most)
        message = request(Verb.CLAIM, body, reply_to=self._requests.reply_to, correlation_id=question_id)
        return AcquireRequest(message, owner.origin, self._requests.expect(question_id))

    def forget(self, question: AcquireRequest) -> None:
        """Drop a request, whose answer is not awaited any more."""
        self._requests.forget(question.id)

    async def ask(self, question: AcquireRequest, *, pause_seconds: float = 0.0) -> Claim | None:
        """Send a request once and return the shard's answer; None without a readable answer within 5 s.

        None also means that no dispatcher is there now. The message expires after `ANSWER_SECONDS` and the pause, when
        the next one may be sent, so that no dispatcher finds a request of an agent that is gone.

        Raises:
            NoOwner: when the shard never had a queue, as far as this process knows, or refuses the request as invalid.
        """
        if self.closed:
            return None
        expiration_ms = round(1000 * (ANSWER_SECONDS + pause_seconds))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._broker.publish(
                    replace(question.message, expiration_ms=expiration_ms),
                    exchange=routing.CONTROL,
                    routing_key=question.origin,
                    timeout_seconds=ANSWER_SECONDS,
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

        None means that the delivery was lost meanwhile, or that no answer came within `GIVE_UP_SECONDS`.

        Raises:
            NoOwner: as `ask` does.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + GIVE_UP_SECONDS
        for pause in BACKOFF.pauses():
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
