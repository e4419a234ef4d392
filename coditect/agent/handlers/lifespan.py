"""The lifespan of an agent: what its handlers share, opened before the first task and closed after the drain."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from coditect.errors import CoditectError, SetupError
from coditect.model import arguments

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""A function of the agent that returns an async context manager, as `contextlib.asynccontextmanager` makes it."""
_SHAPE = "@asynccontextmanager above `async def lifespan(agent): ...; yield what_the_handlers_share; ...`"


def checked_lifespan(given: object) -> Lifespan | None:
    """Check that an agent's lifespan is None, or a function that takes the agent; return it without calling it.

    Raises:
        InputError: when it is no function of one parameter, or yields without `@asynccontextmanager`.
    """
    if given is None:
        return None
    if not callable(given) or inspect.isasyncgenfunction(given) or inspect.iscoroutinefunction(given):
        arguments.refuse("lifespan", "A lifespan is a function that returns an async context manager", given, _SHAPE)
    try:
        inspect.signature(given).bind("agent")
    except (TypeError, ValueError):
        arguments.refuse("lifespan", "A lifespan takes the agent and nothing else", given, _SHAPE)
    return given


@asynccontextmanager
async def lived(lifespan: Lifespan | None, agent: Any) -> AsyncIterator[Any]:
    """Open an agent's lifespan, if any, for the block and yield its value; the lifespan sees no error of the block.

    Raises:
        SetupError: when the lifespan raised an error at its start or stop; it is the cause.
    """
    if lifespan is None:
        yield None
        return
    stack = AsyncExitStack()
    try:
        manager = lifespan(agent)
        value = await stack.enter_async_context(manager)
    except Exception as error:
        raise _failed("The agent's lifespan failed at its start", agent, error) from error
    try:
        yield value
    finally:
        try:
            await stack.aclose()
        except Exception as error:
            raise _failed("The agent's lifespan failed at its stop", agent, error) from error


def _failed(sentence: str, agent: Any, error: Exception) -> SetupError:
    trace, at = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == getattr(agent.lifespan, "__name__", ""):
            at = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    reason = str(error) if isinstance(error, CoditectError) else f"{type(error).__name__}: {error}"
    fix = "see to what it opens; an agent does not run without it"
    return SetupError(sentence, agent=agent.name, at=at, reason=reason, fix=fix)
