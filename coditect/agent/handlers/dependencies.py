"""Dependencies of handlers: values for the parameters beside the input, found by default value or by type.

They are resolved when the handler is declared. They are made for each task, each provider once, and closed after
the handler in reverse order, also when it failed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, get_args, get_type_hints

from coditect.errors import SetupError
from coditect.model.arguments import shown
from coditect.model.result import trace_of


@dataclass(frozen=True, slots=True)
class _Marker:
    provider: Callable[..., Any]


def Depends(provider: Callable[..., Any]) -> Any:  # noqa: N802 - the word of FastAPI, read as a type's name
    """Return a marker, used as a parameter's default: for each call of the handler, `provider` makes the real value.

    The provider is a function, plain or async, or an async generator that yields once and closes after its `yield`.
    Its parameters are dependencies, too. A plain provider runs on the event loop and must be quick.

    Raises:
        SetupError: when it is no function.
    """
    if not inspect.isroutine(provider):
        raise SetupError("A provider is a function", given=shown(provider), fix="Depends(open_it), without a call")
    return _Marker(provider)


@dataclass(frozen=True, slots=True)
class Dependency:
    """A resolved dependency: a provider with its own dependencies, or (without a provider) the lifespan's value."""

    provider: Callable[..., Any] | None = None
    needs: tuple[tuple[str, Dependency], ...] = ()


@dataclass(slots=True)
class Providers:
    """The types that an agent's handlers may ask for: what its lifespan yields, and what its providers return."""

    by_type: dict[Any, Dependency] = field(default_factory=dict)

    def find(self, parameter: inspect.Parameter, hint: Any, path: tuple[object, ...] = ()) -> Dependency | None:
        """Return the dependency that a parameter asks for; None when it asks for none."""
        if isinstance(parameter.default, _Marker):
            return self.of(parameter.default.provider, path)
        return self.by_type.get(hint) if isinstance(hint, type) else None

    def of(self, provider: Callable[..., Any], path: tuple[object, ...] = ()) -> Dependency:
        """Return the dependency that a provider makes, with the provider's own dependencies.

        Raises:
            SetupError: when a parameter of the provider is no dependency, or providers need each other in a circle.
        """
        at = f"{provider.__code__.co_filename}:{provider.__code__.co_firstlineno}" if _has_code(provider) else ""
        if provider in path:
            raise SetupError("Providers need each other in a circle", provider=provider.__qualname__, provided_at=at)
        hints, needs = _hints(provider), []
        for name, parameter in inspect.signature(provider).parameters.items():
            found = self.find(parameter, hints.get(name), (*path, provider))
            if found is None and parameter.default is inspect.Parameter.empty:
                fix = "x: T = Depends(provider), or a type that the lifespan yields or a provider returns"
                raise SetupError("A provider's parameters are dependencies", parameter=name, provided_at=at, fix=fix)
            if found is not None:
                needs.append((name, found))
        return Dependency(provider, tuple(needs))


def _has_code(provider: Callable[..., Any]) -> bool:
    return hasattr(provider, "__code__")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        fix = "import what it names at the top of the file, not under TYPE_CHECKING"
        raise SetupError("An annotation is unknown", of=shown(function), reason=str(error), fix=fix) from error


def yielded_type(function: Callable[..., Any]) -> Any:
    """Return the type of the value that a function returns or yields, by its annotation; None without one."""
    function = inspect.unwrap(function)
    returned = _hints(function).get("return")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return next(iter(get_args(returned)), None)
    return returned


def with_dependencies(
    handler: Callable[..., Any], needs: tuple[tuple[str, Dependency], ...], context_name: str | None
) -> Callable[..., Any]:
    """Return a handler of `(task, ctx)` that makes a handler's dependencies, calls it with them, and closes them."""

    def named(ctx: Any) -> dict[str, Any]:
        return {} if context_name is None else {context_name: ctx}

    @wraps(handler)
    async def on_loop(task: Any, ctx: Any) -> Any:
        async with AsyncExitStack() as stack:
            shared = (ctx[0] if isinstance(ctx, list) else ctx).lifespan  # a batch has many contexts, of one process
            values = await _opened(needs, shared, stack)
            return await handler(task, **named(ctx), **values)

    @wraps(handler)
    def in_thread(task: Any, ctx: Any) -> Any:
        stack = AsyncExitStack()
        try:
            values = ctx.services.run(_opened(needs, ctx.lifespan, stack))
            result = handler(task, **named(ctx), **values)
        except BaseException as error:
            ctx.services.run(_closed(stack, error), closing=True)
            raise
        ctx.services.run(_closed(stack, None), closing=True)
        return result

    return on_loop if inspect.iscoroutinefunction(handler) else in_thread


async def _closed(stack: AsyncExitStack, error: BaseException | None) -> None:
    if error is None:
        await stack.aclose()
    else:
        await stack.__aexit__(type(error), error, trace_of(error))


async def _opened(
    needs: tuple[tuple[str, Dependency], ...], lifespan: Any, stack: AsyncExitStack, made: dict[Any, Any] | None = None
) -> Mapping[str, Any]:
    """Create the values of a handler's dependencies, calling each provider only once; closing `stack` closes them."""
    made = {} if made is None else made
    values: dict[str, Any] = {}
    for name, one in needs:
        if one.provider is None:
            values[name] = lifespan
            continue
        if one.provider not in made:
            given = await _opened(one.needs, lifespan, stack, made)
            made[one.provider] = await _made(one.provider, given, stack)
        values[name] = made[one.provider]
    return values


async def _made(provider: Callable[..., Any], given: Mapping[str, Any], stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(provider):
        return await stack.enter_async_context(asynccontextmanager(provider)(**given))
    value = provider(**given)
    return await value if inspect.isawaitable(value) else value
