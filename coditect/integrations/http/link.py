"""One HTTP agent as the handlers of its capabilities see it: they post a task, await its answer and judge it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from coditect.agent.execution.handler import HandedBack
from coditect.agent.handlers.context import Context
from coditect.aio.supervisor import Supervisor
from coditect.integrations.http.callbacks import Callbacks, Expected
from coditect.integrations.http.calls import AgentCalls, HttpAnswer
from coditect.integrations.http.failures import ActionFailed, AgentLost, AgentRefused, AnswerBroken, InputRefused
from coditect.integrations.http.forwarding import heard
from coditect.integrations.http.messages import (
    WORDS,
    AgentRequestEvent,
    AgentResponseEvent,
    AnswerStatus,
    read_answer,
)
from coditect.model.retry import RETRY_DELAYS_MS, RetryAfter

REQUEST_PATH = "/agent-request"
LONGEST_PAUSE_SECONDS = RETRY_DELAYS_MS[-1] / 1000
MOST_SHOWN = 500
"""Number of characters of an answer in an error message."""


class AgentLink:
    """The calls of a bridge to one HTTP agent, from the agent's start until the agent is gone."""

    def __init__(
        self,
        base_url: str,
        calls: AgentCalls,
        callbacks: Callbacks,
        background: Supervisor,
        *,
        callback_url: str,
        doubt: Callable[[], None],
    ) -> None:
        """Take the agent's URL, HTTP client and callbacks; `doubt` is called when a connection is refused or lost."""
        self._url = base_url + REQUEST_PATH
        self._calls = calls
        self._callbacks = callbacks
        self._background = background
        self._callback_url = callback_url
        self._doubt = doubt
        self._gone = ""
        """Why the agent is gone; empty while it is there."""
        self._open: set[asyncio.Future[AgentResponseEvent]] = set()
        self.deferred = 0
        """The number of attempts whose answer is to come by callback."""

    def end(self, reason: str) -> None:
        """Let the attempts under way fail, since the agent is gone; tasks that come later go back to their queues."""
        self._gone = reason
        for answer in self._open:
            if not answer.done():
                answer.set_exception(AgentLost("The agent went away before it answered", reason=reason))

    def answered(self, content: Any) -> dict[str, Any]:
        """Take an answer by callback that another API process got, and return the reply to that process."""
        return heard(self._callbacks, content)

    async def act(self, value: Any, ctx: Context, *, timeout_seconds: float) -> Any:
        """Post a task as one attempt, and return the result that the agent answers.

        Raises:
            HandedBack: when the agent takes no connection, so that the attempt does not count.
            AgentLost: when the agent went away before it answered; retryable, as are the next three.
            AnswerBroken: when the answer is none.
            ActionFailed: when the agent answered with an error.
            RetryAfter: when the agent asked for another attempt later, by 429 or 503.
            InputRefused: when the agent refused the input.
            TimeoutError: when the agent answered that its time was over.
        """
        if self._gone:
            raise HandedBack
        with self._callbacks.expect(f"{ctx.task_id}.{ctx.fence}", ctx.agent_id) as expected:
            event = self._event(value, ctx, expected, timeout_seconds)
            self._open.add(expected.answer)
            try:
                answer = await self._answer(event, expected, ctx.trace)
            except AgentRefused as error:
                self._doubt()
                raise HandedBack from error
            except AgentLost:
                self._doubt()
                raise
            finally:
                self._open.discard(expected.answer)
        return _result(answer)

    def _event(self, value: Any, ctx: Context, expected: Expected, timeout_seconds: float) -> bytes:
        return (
            AgentRequestEvent(
                event_id=expected.event_id,
                created_at=datetime.now(UTC),
                source_agent=ctx.requester,
                target_agent=ctx.agent_id,
                action=ctx.capability,
                parameters=value,
                callback_url=f"{self._callback_url}/{expected.token}",
                priority=WORDS[ctx.priority],
                timeout_seconds=round(ctx.seconds_left(timeout_seconds), 3),
                correlation_id=ctx.task_id,
            )
            .model_dump_json()
            .encode()
        )

    async def _answer(self, event: bytes, expected: Expected, trace: Mapping[str, str]) -> AgentResponseEvent:
        """Post an attempt's request; return the answer in the HTTP response or by callback, whichever comes first."""
        call = self._calls.post(self._url, event, trace)
        posting = self._background.start(call, name="agent request", awaited=True)
        try:
            await asyncio.wait((posting, expected.answer), return_when=asyncio.FIRST_COMPLETED)
            if not expected.answer.done():
                answer = _judged(posting.result(), expected.event_id)
                if answer is not None:
                    return answer
            self.deferred += 1
            try:
                return await expected.answer
            finally:
                self.deferred -= 1
        finally:
            posting.cancel()
            if posting.done() and not posting.cancelled():
                posting.exception()  # of a request that the callback overtook, nobody else asks


def _judged(answer: HttpAnswer, event_id: str) -> AgentResponseEvent | None:
    """Return the answer that an HTTP response carries, or None when it is to come by callback (status 202).

    Raises:
        CoditectError: the errors of `AgentLink.act`.
    """
    if answer.status == 200:
        return read_answer(answer.body, event_id)
    if answer.status == 202:
        return None
    facts = {"status": answer.status, "answer": answer.body[:MOST_SHOWN].decode(errors="replace")}
    if answer.status in (400, 422):
        raise InputRefused("The agent refused the input", **facts)
    pause = answer.pause_seconds(most=LONGEST_PAUSE_SECONDS) if answer.status in (429, 503) else None
    if pause is not None:
        raise RetryAfter(pause, f"The agent asked for another attempt later, by {answer.status}")
    fix = "answer 200 with an AgentResponseEvent, or 202 and post it to callback_url later"
    raise AnswerBroken("The agent answered with another status", **facts, fix=fix)


def _result(answer: AgentResponseEvent) -> Any:
    if answer.status is AnswerStatus.SUCCESS:
        return answer.result
    told = str(answer.error)[:MOST_SHOWN] if answer.error is not None else ""
    if answer.status is AnswerStatus.TIMEOUT:
        raise TimeoutError(f"The agent ran out of time. {told}".strip())
    raise ActionFailed("The agent failed", error=told)
