"""Handlers that yield their result in parts, wrapped so that the runtime calls them like handlers of one value.

A requester that asked for a stream gets each part as it is yielded, and their number as the task's value. Any other
requester, and a workflow, gets all parts as one list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from functools import wraps
from typing import Any

from coditect.agent.handlers.context import TaskContext
from coditect.codec import Codec
from coditect.errors import CoditectError, TooLarge
from coditect.wire.json import loads

CONTEXT = "coditect_context"
"""The name of the context's parameter in the function that `in_parts` returns; no handler has such a parameter."""
MOST_COLLECTED_BYTES = 16 * 1024 * 1024
"""The most bytes of JSON that all parts of a result that is not streamed may have together."""


def yields(handler: Callable[..., Any]) -> bool:
    """Tell whether a handler is a generator function, plain or async, so that its result has parts."""
    return inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler)


class _Sink:
    """The receiver of one result's parts: sends each to the requester as it comes, or collects all in a list."""

    def __init__(self, ctx: TaskContext, part: Codec) -> None:
        self._services = ctx.services
        self.streamed = ctx.streamed
        self._codec = part
        self._parts: list[bytes] = []
        self._bytes = 0

    async def send(self, part: Any) -> None:
        await self._services.send_part(self._codec.encode(part))

    def collect(self, part: Any) -> None:
        body = self._codec.encode(part)  # at once: the generator may change what it has yielded
        self._parts.append(body)
        self._bytes += len(body)
        if self._bytes > MOST_COLLECTED_BYTES:
            raise TooLarge(
                "The parts are too large for one result",
                limit=MOST_COLLECTED_BYTES,
                fix="take them one by one: submit(..., stream=True), then handle.stream()",
            )

    async def failed(self) -> None:
        """Wait until the broker has the parts of a failed attempt: they must reach the requester before the failure."""
        if self.streamed:
            with suppress(CoditectError):  # the handler's own error says more
                await self._services.end_parts(complete=False)

    def whole(self) -> list[Any]:
        return [loads(part) for part in self._parts]

    async def sent(self) -> int:
        return await self._services.end_parts(complete=True)


def in_parts(handler: Callable[..., Any], part: Codec, context_name: str | None) -> Callable[..., Any]:
    """Return a handler that runs a generator handler, and returns all parts as a list, or the number it streamed.

    It takes the task, a context and dependencies.
    It returns all parts as a list of JSON values; when they are streamed, their number. The generator is closed at the
    end of the attempt, also when the attempt is canceled or its time is over.
    """

    def called(task: Any, ctx: TaskContext, values: dict[str, Any]) -> Any:
        return handler(task, **({} if context_name is None else {context_name: ctx}), **values)

    @wraps(handler)
    async def on_loop(task: Any, coditect_context: TaskContext, **values: Any) -> Any:
        sink = _Sink(coditect_context, part)
        try:
            async with aclosing(called(task, coditect_context, values)) as parts:
                async for one in parts:
                    if sink.streamed:
                        await sink.send(one)
                    else:
                        sink.collect(one)
        except Exception:
            await sink.failed()
            raise
        return await sink.sent() if sink.streamed else sink.whole()

    @wraps(handler)
    def in_thread(task: Any, coditect_context: TaskContext, **values: Any) -> Any:
        sink, run = _Sink(coditect_context, part), coditect_context.services.run
        try:
            with closing(called(task, coditect_context, values)) as parts:
                for one in parts:
                    if sink.streamed:
                        run(sink.send(one))
                    else:
                        sink.collect(one)
        except Exception:
            run(sink.failed(), closing=True)
            raise
        return run(sink.sent()) if sink.streamed else sink.whole()

    return on_loop if inspect.isasyncgenfunction(handler) else in_thread
