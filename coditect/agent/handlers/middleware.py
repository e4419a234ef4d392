"""Middleware around the tasks of an agent: functions that see each task on its way to the handler and back.

The functions are chained once, when the agent starts; a task of an agent without middleware meets none of this.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from coditect.agent.handlers.context import Context, TaskContext
from coditect.errors import SetupError
from coditect.model.arguments import shown


class MiddlewareContext(Context):
    """The execution of a task as middleware sees it: the context of an async handler, and the input."""

    def __init__(self, inside: TaskContext, given: Any, handle: Callable[[Any], Awaitable[Any]]) -> None:
        """Describe one call: the handler's context, the decoded input, and the function that calls the handler."""
        super().__init__(inside._task, inside.task_id, inside.agent_id, inside.services, headers=inside._headers)
        self._inside, self._asked, self._handle = inside, inside._asked, handle
        self.input = given
        """The validated input of the task; middleware may set another one, which is not validated again."""

    @property
    def workspace(self) -> Path:
        """The temporary folder of the execution, which the handler has, too."""
        return self._inside.workspace

    def handled(self) -> Awaitable[Any]:
        """Call the handler, inside all middleware, with the present input, which middleware may have replaced."""
        return self._handle(self.input)


CallNext = Callable[[MiddlewareContext], Awaitable[Any]]
"""What middleware calls to go on: the next middleware, or the handler at last; it returns the handler's value."""
Middleware = Callable[[MiddlewareContext, CallNext], Awaitable[Any]]
_SHAPE = "async def middleware(ctx: MiddlewareContext, call_next: CallNext): return await call_next(ctx)"


def checked_middleware(given: object) -> Middleware:
    """Check that middleware is an async function of a context and the next call, and return it.

    Raises:
        SetupError: when it is not async, or takes other parameters.
    """
    call = getattr(given, "__call__", None)  # noqa: B004 - an object may be middleware by its method
    if not callable(given) or not (inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(call)):
        raise SetupError("Middleware is an async function", given=shown(given), fix=_SHAPE)
    try:
        signature = inspect.signature(given)
        signature.bind("ctx", "call_next")
        if next(iter(signature.parameters)) == "call_next":
            raise TypeError("the context comes first")
    except (TypeError, ValueError):
        raise SetupError("Middleware takes the context and the next call", given=shown(given), fix=_SHAPE) from None
    return given


def chained(stack: Iterable[Middleware]) -> CallNext | None:
    """Return the call that passes a task through middleware, the first one outermost; None without any."""
    call: CallNext | None = None
    for middleware in reversed(tuple(stack)):
        call = partial(_passed, middleware, call or MiddlewareContext.handled)
    return call


def _passed(middleware: Middleware, call_next: CallNext, ctx: MiddlewareContext) -> Awaitable[Any]:
    return middleware(ctx, call_next)
