"""The answers that come by callback: each attempt has a secret address, which is valid until the attempt's end.

The address names the agent, too: an answer that another API process gets is passed on to the agent's mailbox, which the
process consumes that has posted the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from secrets import token_urlsafe

from coditect.errors import NotFound
from coditect.integrations.http.messages import AgentResponseEvent, check_answer
from coditect.model.ids import AgentId


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
            AnswerBroken: when it is the answer to another request; the attempt goes on waiting.
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
