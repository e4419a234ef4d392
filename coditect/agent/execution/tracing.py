"""The span of each attempt: around the call of the handler, with how the attempt ended."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Protocol

from coditect.agent.declaration import Capability
from coditect.agent.execution.execution import Execution
from coditect.agent.execution.handler import HandlerEnd, SentBack
from coditect.model.ids import AgentId
from coditect.model.result import Status
from coditect.telemetry.tracing.messaging import begin_process
from coditect.telemetry.tracing.port import CURRENT, Span, Tracing


class Handling(Protocol):
    """A function that runs one attempt of a task, and returns how the attempt ended.

    The attempt begins at `now_ms`; `guarded` says that breaker, rate and concurrency limit allow it already.
    """

    def __call__(self, execution: Execution, now_ms: int, *, guarded: bool = False) -> Awaitable[HandlerEnd]:
        """Call the handler, and return how the attempt ended."""


class TracedHandling:
    """The runner of attempts that puts each traced one into a span, which begins when the handler may be called."""

    def __init__(
        self, tracing: Tracing, handle: Handling, agent_id: AgentId, capabilities: Mapping[str, Capability]
    ) -> None:
        self._tracing, self._handle, self._agent_id = tracing, handle, agent_id
        self._capabilities = capabilities

    def __call__(self, execution: Execution, now_ms: int, *, guarded: bool = False) -> Awaitable[HandlerEnd]:
        """Run an attempt; its span, if it is traced, begins once breaker, rate and concurrency limit allow the call."""
        if not guarded and self._capabilities[execution.task.capability].guarded:
            return self._handle(execution, now_ms)
        delivery = execution.delivery
        span = execution.span = begin_process(
            self._tracing,
            execution.task,
            agent=self._agent_id,
            origin=(delivery.exchange, delivery.routing_key, delivery.queue),
            redelivered=delivery.redelivered,
        )
        if span is None or (not span.sampled and self._tracing.alone):
            CURRENT.set(span)  # for log lines; the execution's context ends with it
            return self._handle(execution, now_ms, guarded=guarded)
        return self._traced(span, self._handle(execution, now_ms, guarded=guarded))

    async def _traced(self, span: Span, handling: Awaitable[HandlerEnd]) -> HandlerEnd:
        try:
            with self._tracing.current(span):
                ended = await handling
        except SentBack:
            span.attributes = {**span.attributes, "coditect.sent_back": True}
            span.end()
            raise
        except BaseException as error:
            span.end(type(error).__name__)
            raise
        _end(span, ended)
        return ended


def _end(span: Span, ended: HandlerEnd) -> None:
    if span.sampled and ended.status is not Status.COMPLETED:
        span.attributes = {**span.attributes, "coditect.status": ended.status.value}
    failure = ended.failure
    if failure is None or ended.status is Status.CANCELED:
        span.end()
    else:
        span.end(failure.type or failure.reason, failure.message)


def traced(tracing: Tracing, handle: Handling, agent_id: AgentId, capabilities: Mapping[str, Capability]) -> Handling:
    """Return a function that runs attempts by `handle` inside tracing spans; `handle` itself when tracing is off."""
    return TracedHandling(tracing, handle, agent_id, capabilities) if tracing.active else handle
