"""The event that the bridge posts to an HTTP agent, and the answer that it takes: at once, or later by callback.

For a late answer each attempt has a secret address, which is valid until the attempt's end. The API process that gets
the answer passes it on to the process that posted the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from secrets import token_urlsafe
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coditect.broker.port import Broker
from coditect.errors import InvalidTask, NotFound, Overloaded, Retryable
from coditect.integrations.http.addresses import AnswerBroken
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.operations.locate import ask_agents
from coditect.wire import control_messages, routing
from coditect.wire.routing import Address

PriorityWord = Literal["low", "medium", "high", "critical"]
WORDS: Mapping[Priority, PriorityWord] = {Priority.P0: "critical", Priority.P1: "medium", Priority.P2: "low"}


class AgentRequestEvent(BaseModel):
    """An attempt at a task, as it is posted to `/agent-request` of an HTTP agent."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    event_type: Literal["agent_request"] = "agent_request"
    """The kind of the event."""
    event_id: UUID
    """The id of this attempt; the answer repeats it as `request_id`."""
    created_at: datetime
    """When the event was posted."""
    source_agent: str
    """The process that waits for the result, or `workflow:<id>`; empty when none does."""
    target_agent: str
    """The id of the agent that is asked; `*` asks any."""
    action: str
    """The name of the capability that is asked for."""
    parameters: Any
    """The task's input; `{}` without one."""
    callback_url: str | None
    """Where a later answer is posted; secret, and valid for this attempt alone. Null if the request is no task."""
    priority: PriorityWord
    """How urgent it is: critical is P0, high and medium are P1, low is P2."""
    timeout_seconds: int
    """How long the attempt may last, from now on: whole seconds, rounded down, and at least 1."""
    correlation_id: str | None
    """The id of the task that the attempt belongs to, the same at all attempts: the key of effects that must not happen
    twice. Null if the request is no task."""


def parameters_of(value: Any) -> Any:
    """Return a task's input as it is posted: an agent gets an object also when the task has no input."""
    return {} if value is None else value


class AnswerStatus(StrEnum):
    """The status of an HTTP agent's answer."""

    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"


class AgentResponseEvent(BaseModel):
    """An HTTP agent's answer to an `AgentRequestEvent`, at once or by its callback."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    request_id: str = Field(max_length=200)
    """The `event_id` of the request."""
    status: AnswerStatus
    """How the attempt ended."""
    result: Any = None
    """The value, with the status `success`."""
    error: Any = None
    """What went wrong, with the status `error`: a text, or JSON."""
    duration_ms: float | None = Field(default=None, ge=0)
    """How long the work took, in milliseconds."""


ANSWER_FIX = 'answer {"request_id": <event_id>, "status": "success", "result": ...}'


def read_answer(body: bytes, event_id: str) -> AgentResponseEvent:
    """Parse the body of an HTTP agent's answer, and check that it answers the request with this id.

    Raises:
        AnswerBroken: when the body is no answer, or the answer to another request.
    """
    try:
        answer = AgentResponseEvent.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise AnswerBroken(
            "The answer is no AgentResponseEvent", at=where, reason=first["msg"], fix=ANSWER_FIX
        ) from error
    return check_answer(answer, event_id)


def check_answer(answer: AgentResponseEvent, event_id: str) -> AgentResponseEvent:
    """Check that an answer belongs to the request with this id, and return it.

    Raises:
        AnswerBroken: when it is the answer to another request.
    """
    if answer.request_id != event_id:
        raise AnswerBroken("The answer is that of another request", request_id=answer.request_id[:100], fix=ANSWER_FIX)
    return answer


@dataclass(frozen=True, slots=True)
class Expected:
    """The answer that one attempt expects by callback."""

    event_id: str
    token: str = field(repr=False)
    """The last part of the callback's address: the agent's id, a dot, and 256 random bits."""
    answer: asyncio.Future[AgentResponseEvent]


class Callbacks:
    """The callbacks that the attempts of one process expect."""

    def __init__(self) -> None:
        self._expected: dict[str, Expected] = {}

    def __len__(self) -> int:
        return len(self._expected)

    @contextmanager
    def expect(self, event_id: str, agent_id: AgentId) -> Iterator[Expected]:
        """Accept an agent's callback for one request while the block runs; yield its token and pending answer."""
        answer: asyncio.Future[AgentResponseEvent] = asyncio.get_running_loop().create_future()
        expected = Expected(event_id, f"{agent_id}.{token_urlsafe(32)}", answer)
        self._expected[expected.token] = expected
        try:
            yield expected
        finally:
            del self._expected[expected.token]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # an attempt that ended otherwise does not ask for it

    def take(self, token: str, answer: AgentResponseEvent) -> None:
        """Give a callback's answer to the attempt that expects it under the token; a second answer has no effect.

        Raises:
            NotFound: when no attempt of this process expects an answer under the token, or none any more.
            AnswerBroken: when it is the answer to another request; the attempt still waits.
        """
        expected = self._expected.get(token)
        if expected is None:
            raise answer_late()
        check_answer(answer, expected.event_id)
        if not expected.answer.done():
            expected.answer.set_result(answer)


def answer_late() -> NotFound:
    """Return the error for an answer that no attempt waits for."""
    fix = "the attempt is over: its time has passed, or another agent has the task"
    return NotFound("No attempt waits for this answer", fix=fix)


def agent_of(token: str) -> AgentId:
    """Return the id of the agent that the token of a callback names."""
    return AgentId(token.rpartition(".")[0])


TOPIC = "coditect.http.answer"
MOST_FORWARDED = 100
"""How many answers a process passes on at once: anyone may post one, and each waits up to a second for its reply."""


class ForwardedAnswer(BaseModel):
    """An answer by callback, on its way to the API process that waits for it."""

    token: str = Field(repr=False)
    answer: AgentResponseEvent


class AnswerReply(BaseModel):
    """The reply to a forwarded answer, from the process that serves the agent: taken, late, or the mistake in it."""

    taken: bool
    mistake: str = ""
    facts: dict[str, str] = {}


def heard(callbacks: Callbacks, content: Any) -> dict[str, Any]:
    """Give a callback's answer from another API process to its attempt; return the reply: taken, late, or mistaken."""
    try:
        forwarded = ForwardedAnswer.model_validate(content)
        callbacks.take(forwarded.token, forwarded.answer)
    except (NotFound, ValidationError):  # a broadcast of the topic that is no answer is one to nothing
        return AnswerReply(taken=False).model_dump()
    except AnswerBroken as error:
        facts = {name: str(fact) for name, fact in error.facts.items()}
        return AnswerReply(taken=False, mistake=error.sentence, facts=facts).model_dump()
    return AnswerReply(taken=True).model_dump()


class AnswerForwarding:
    """The sender by which one API process passes answers on to others, with a bound on how many at once."""

    def __init__(self, *, limit: int = MOST_FORWARDED) -> None:
        self._left = limit

    async def send(self, broker: Broker, token: str, answer: AgentResponseEvent) -> None:
        """Pass an answer on to the process that serves the agent, and wait until an attempt took it.

        Raises:
            NotFound: when no attempt waits for the answer, or none any more.
            InvalidTask: when it is the answer to another request; the attempt still waits.
            Overloaded: when too many answers are passed on; retryable.
            Retryable: when the process did not say within a second whether an attempt took it; the agent posts again.
        """
        if self._left <= 0:
            raise Overloaded("Too many answers are passed on to other API processes", fix="post it again")
        content = ForwardedAnswer(token=token, answer=answer).model_dump(mode="json")
        to = Address(routing.AGENTS, routing.mailbox_key(agent_of(token)))
        self._left -= 1
        try:
            replies = await ask_agents(broker, control_messages.broadcast(TOPIC, content), enough=bool, to=to)
        finally:
            self._left += 1
        if not replies:
            raise Retryable("The API process that serves the agent does not answer", fix="post it again")
        reply = AnswerReply.model_validate(replies[0])
        if reply.mistake:
            raise InvalidTask(reply.mistake, **reply.facts)
        if not reply.taken:
            raise answer_late()
