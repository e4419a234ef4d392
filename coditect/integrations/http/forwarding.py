"""The passing on of callback answers, from the API process that got one to the process that posted the request.

Several API processes may stand behind one address. The process that serves an HTTP agent consumes the agent's mailbox:
a broadcast to it alone carries the answer, and the listener says whether an attempt took it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, ValidationError

from coditect.broker.port import Broker
from coditect.errors import InvalidTask, NotFound, Overloaded, Retryable
from coditect.integrations.http.callbacks import Callbacks, agent_of, answer_late
from coditect.integrations.http.failures import AnswerBroken
from coditect.integrations.http.messages import AgentResponseEvent
from coditect.operations.diagnosis.question import ask_agents
from coditect.wire import control_messages, routing
from coditect.wire.routing import Address

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
        given = ForwardedAnswer.model_validate(content)
        callbacks.take(given.token, given.answer)
    except (NotFound, ValidationError):  # a broadcast of the topic that is no answer is one to nothing
        return AnswerReply(taken=False).model_dump()
    except AnswerBroken as error:
        facts = {name: str(fact) for name, fact in error.facts.items()}
        return AnswerReply(taken=False, mistake=error.sentence, facts=facts).model_dump()
    return AnswerReply(taken=True).model_dump()


class AnswerForwarding:
    """The sender by which one API process passes answers on to others, with a bound on how many at once."""

    def __init__(self, *, most: int = MOST_FORWARDED) -> None:
        self._left = most

    async def send(self, broker: Broker, token: str, answer: AgentResponseEvent) -> None:
        """Pass an answer on to the process that serves the agent, and wait until an attempt took it.

        Raises:
            NotFound: when no attempt waits for the answer, or none any more.
            InvalidTask: when it is the answer to another request; the attempt goes on waiting.
            Overloaded: when too many answers are passed on; retryable.
            Retryable: when the process did not say within a second whether an attempt took it; the agent posts again.
        """
        if self._left <= 0:
            raise Overloaded("Too many answers are passed on to other API processes", fix="post it again")
        self._left -= 1
        try:
            told = await self._ask(broker, token, answer)
        finally:
            self._left += 1
        if told.mistake:
            raise InvalidTask(told.mistake, **told.facts)
        if not told.taken:
            raise answer_late()

    async def _ask(self, broker: Broker, token: str, answer: AgentResponseEvent) -> AnswerReply:
        content = ForwardedAnswer(token=token, answer=answer).model_dump(mode="json")
        to = Address(routing.AGENTS, routing.mailbox_key(agent_of(token)))
        replies = await ask_agents(broker, control_messages.broadcast(TOPIC, content), enough=bool, to=to)
        if not replies:
            raise Retryable("The API process that serves the agent does not answer", fix="post it again")
        return AnswerReply.model_validate(replies[0])
