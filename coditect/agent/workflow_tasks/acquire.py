"""Asks the control plane whether an owned task may run here, before it does.

A delivery that came back, or that is not fresh any more, may have run elsewhere meanwhile, or may be wanted by
nobody: its shard decides, and gives the fence under which it runs. One question has one id, however often it is
asked; the answer to each asking is the same.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from coditect.agent.quarantine import earlier_deliveries
from coditect.aio.clock import Clock
from coditect.broker.port import Broker, Delivery
from coditect.errors import CoditectError, InvalidTask, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.model.task import Owner, Task
from coditect.wire import routing
from coditect.wire.control import Claim, Verb, claim_body, request
from coditect.wire.json import loads
from coditect.wire.tasks import SENT_AGAIN

log = logging.getLogger(__name__)

FRESH_MS = 1_000
"""For so long after its publication a first delivery runs unasked."""
MOST_AHEAD_MS = 500
"""A delivery that comes so long before its publication says that the clocks differ, and nothing of its age."""
ANSWER_SECONDS = 5.0
"""How long an answer is waited for before the next asking, and how long with the slot in hand."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
GIVE_UP_SECONDS = 600.0
"""Then the delivery goes back: the broker would take it after 30 minutes, with everything else of its channel."""


class NoOwner(InvalidTask):
    """What a task names as its owner does not exist: neither would anybody say that it may run, nor how it ended."""


def no_owner(sentence: str, **named: str) -> NoOwner:
    """The error for a task that names such an owner."""
    fix = "publish it without x-coditect-workflow; or run the dispatcher that owns it, and redrive"
    return NoOwner(sentence, **named, fix=fix)


@dataclass(eq=False, slots=True)
class AcquireRequest:
    """One claim, from its first asking to its answer."""

    message: Message
    origin: str
    reply: asyncio.Future[Outcome]

    @property
    def id(self) -> str:
        """The same for each asking."""
        return self.message.correlation_id or ""


class AcquireRequests:
    """The claims of one agent process."""

    def __init__(self, broker: Broker, requests: Requests, clock: Clock, *, agent_id: AgentId) -> None:
        self._broker = broker
        self._requests = requests
        self._clock = clock
        self._agent_id = agent_id
        self._silent: set[str] = set()
        """Shards that are there, and left the last question, or the last result, without an answer."""
        self._heard: set[str] = set()
        """Shards that answered or took something, some time: each has a queue, so nobody can make them many."""
        self.closed = False
        """Nothing is asked any more; what was asked may be answered still."""

    def needed(self, task: Task, owner: Owner, delivery: Delivery) -> bool:
        """Whether the task may not run unasked."""
        published = task.published_at_ms
        if earlier_deliveries(delivery) or published is None or owner.origin in self._silent:
            return True
        if SENT_AGAIN in delivery.message.headers:  # the other copy runs unasked
            return True
        return not -MOST_AHEAD_MS <= self._clock.now_ms() - published <= FRESH_MS

    def silent(self, origin: str) -> bool:
        """Whether the shard left the last question, or the last result, without an answer."""
        return origin in self._silent

    def heard(self, origin: str) -> None:
        """This shard exists: it took a result, or a word about a task that runs."""
        self._heard.add(origin)

    def missed(self, origin: str, error: Unroutable) -> None:
        """This shard has no queue: its tasks do not run unasked until it answers.

        Raises: NoOwner when it never had one, as far as this process knows.
        """
        if origin not in self._heard:
            raise no_owner("The task names a shard that does not exist", origin=origin) from error
        self._silent.add(origin)

    def question(self, task: Task, owner: Owner, *, running: bool = False) -> AcquireRequest:
        """The claim of this task; to be ended by `forget`."""
        question_id = self._clock.new_id()
        body = claim_body(owner, publication=task.publication, agent=self._agent_id, running=running)
        message = request(Verb.CLAIM, body, reply_to=self._requests.reply_to, correlation_id=question_id)
        return AcquireRequest(message, owner.origin, self._requests.expect(question_id))

    def forget(self, question: AcquireRequest) -> None:
        """Nobody waits for its answer any more."""
        self._requests.forget(question.id)

    async def ask(self, question: AcquireRequest, *, pause_seconds: float = 0.0) -> Claim | None:
        """One asking; None when there is no answer within `ANSWER_SECONDS`, or when nobody is there to give one now.

        It lies in its queue for no longer than until the next one, after that and the pause: nobody finds what an agent
        asked that is gone. Raises: NoOwner.
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
                return self._read(question)
        except TimeoutError:
            self._unanswered(question, "no answer in time")
        except Unroutable as error:
            self.missed(question.origin, error)
            self._unanswered(question, str(error))
        except CoditectError as error:
            self._unanswered(question, str(error))
        return None

    async def insist(self, question: AcquireRequest, delivery: Delivery) -> Claim | None:
        """Asks with growing pauses; None when the delivery is lost meanwhile, or there is no answer for too long."""
        loop = asyncio.get_running_loop()
        give_up, pause = loop.time() + GIVE_UP_SECONDS, FIRST_PAUSE_SECONDS
        while loop.time() < give_up and not delivery.lost:
            claim = await self.ask(question, pause_seconds=pause)
            if claim is not None:
                return claim
            await asyncio.wait([question.reply], timeout=pause)
            if question.reply.done() and (claim := self._answered(question)) is not None:
                return claim
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return None

    def _answered(self, question: AcquireRequest) -> Claim | None:
        """What came between two askings."""
        try:
            return self._read(question)
        except CoditectError as error:
            self._unanswered(question, str(error))
            return None

    def _read(self, question: AcquireRequest) -> Claim:
        """Raises: CoditectError when the answer is no claim; the next one is waited for then."""
        reply, question.reply = question.reply, self._requests.expect(question.id)
        outcome = reply.result()
        if outcome.failure is not None:
            raise CoditectError("The claim was refused", reason=outcome.failure.reason, message=outcome.failure.message)
        claim = Claim.read(loads(outcome.body))
        self._heard.add(question.origin)
        self._silent.discard(question.origin)
        return claim

    def _unanswered(self, question: AcquireRequest, reason: str) -> None:
        level = logging.DEBUG if question.origin in self._silent else logging.WARNING
        self._silent.add(question.origin)
        facts = {"shard": question.origin, "reason": reason}
        log.log(level, "The control plane does not answer; its tasks wait without a slot", extra=facts)
