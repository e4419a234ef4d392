"""What a handler is called with: its input and output types, its dependencies, the lifespan value, and middleware.

A handler is `(task)` or `(task, ctx)`. Its annotations declare the types of input and result.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import GenericAlias
from typing import Any, get_args, get_origin, get_type_hints

from coditect.agent.batch import hints_of_one
from coditect.agent.context import Context, PlainContext, TaskContext
from coditect.aio.supervisor import cancellations
from coditect.codec import BYTES, Codec, codec
from coditect.errors import CoditectError, SetupError, TooLarge
from coditect.model import arguments
from coditect.model.arguments import shown
from coditect.model.result import error_message, error_name, original_error, trace_of
from coditect.wire.json import loads

CONTEXT_NAMES = frozenset({"ctx", "context", "_ctx", "_context", "_"})
"""Names by which a second parameter without an annotation is recognized as the Context."""
_YIELDING = (AsyncIterator, AsyncGenerator, AsyncIterable, Iterator, Generator, Iterable)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_YIELDS_ONCE = "A provider that is a generator yields once"
_TASK_AND_CONTEXT = "A handler takes the task's input and, if it wants, a Context"


@dataclass(frozen=True, slots=True)
class Signature:
    """The input and output types of a handler, and whether it takes a Context."""

    input: Codec
    output: Codec
    wants_context: bool
    blocking: bool = False
    """Whether the context is a `PlainContext`, whose methods wait."""
    dependencies: tuple[tuple[str, Dependency], ...] = ()
    """The parameters that are neither input nor context, with what makes their values."""
    context_name: str | None = None
    parts: Codec | None = None
    """The type of the parts of a handler that yields its result; None for one that returns it."""

    @property
    def binary(self) -> bool:
        """True when the input or the value is bytes, and not JSON."""
        return self.input.binary or self.output.binary


def signature(
    handler: Callable[..., Any], providers: Providers | None = None, *, of_batches: bool = False
) -> Signature:
    """Return the handler's signature; a parameter or result without an annotation counts as any JSON value.

    With `of_batches` the types are those inside of the lists that the handler takes and returns.

    Raises:
        SetupError: when the handler has another shape; the error names the handler's file and line.
    """
    try:
        if not inspect.isroutine(_function(handler)):
            raise SetupError("A handler is a function", given=type(handler).__name__, fix="put the decorator above one")
        return _signature(handler, providers or Providers(), of_batches=of_batches)
    except SetupError as error:
        error.facts |= {"handler": getattr(handler, "__qualname__", shown(handler)), "at": line_of(handler)}
        raise


def line_of(handler: object) -> str:
    """Return the file and line at which a handler begins, for error messages; "" if it has no line."""
    code = getattr(_function(handler), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _function(handler: Any) -> Any:
    """Return the function inside `functools.partial` and decorators."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.unwrap(handler) if callable(handler) else handler


def _signature(handler: Callable[..., Any], providers: Providers, *, of_batches: bool) -> Signature:
    hints = _hints(_function(handler))
    part = _part_type(handler, hints.get("return", Any)) if yields(handler) else None
    needs = _dependencies(handler, hints, providers)
    parameters = _parameters(handler, frozenset(needs))
    if of_batches:
        if part is not None:
            raise SetupError("A handler of batches returns a list; this one yields", fix="leave batch=... out")
        hints = hints_of_one(hints, [parameter.name for parameter in parameters])
    task, *others = parameters
    if _is_context(hints.get(task.name)):
        raise SetupError(_TASK_AND_CONTEXT, parameter=task.name, fix="write (task, ctx: Context)")
    for other in others:
        hint = hints.get(other.name, Any)
        if not (_is_context(hint) or (hint is Any and other.name in CONTEXT_NAMES)):
            fix = "write (task, ctx: Context); input of several parts is one model, a dataclass or a dict"
            raise SetupError("The second parameter of a handler is its Context", parameter=other.name, fix=fix)
    output = _codec("return", hints.get("return", Any) if part is None else GenericAlias(list, part))
    return Signature(
        input=_codec(task.name, hints.get(task.name, Any)),
        output=output if part is None else Codec(schema=output.schema),  # all parts in a list, or their number
        wants_context=bool(others or needs or part is not None),
        dependencies=tuple(needs.items()),
        context_name=others[0].name if others else None,
        blocking=bool(others or needs) and _blocks(handler, hints.get(others[0].name, Any) if others else Any),
        parts=None if part is None else _codec("return", part),
    )


def _part_type(handler: Callable[..., Any], returned: Any) -> Any:
    """Return the type of the parts that a generator function yields, by its annotation."""
    wanted = "AsyncIterator" if inspect.isasyncgenfunction(handler) else "Iterator"
    if returned is Any:
        return Any
    if get_origin(returned) not in _YIELDING and returned not in _YIELDING:
        raise SetupError(
            "A handler that yields is annotated with what it yields",
            given=shown(returned),
            fix=f"write -> {wanted}[str], with the type of one part",
        )
    part = next(iter(get_args(returned)), Any)
    if part is bytes:
        raise SetupError("The parts of a result are JSON", given="bytes", fix="yield texts, or base64 in a text")
    return part


def _blocks(handler: Callable[..., Any], hint: Any) -> bool:
    """Tell whether a handler gets a `PlainContext`, which blocks: by annotation, or by default in a plain handler."""
    function = _function(handler)
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    if hint is Any:
        return not is_async
    asked = PlainContext in (hint, *get_args(hint))
    if asked and is_async:
        raise SetupError("An async handler must not wait in its methods", fix="write (task, ctx: Context)")
    return asked


def _dependencies(handler: Callable[..., Any], hints: dict[str, Any], providers: Providers) -> dict[str, Dependency]:
    """Return the dependencies of a handler by the names of their parameters; the first parameter is never one."""
    try:
        parameters = list(inspect.signature(handler).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}
    found = ((parameter, providers.find(parameter, hints.get(parameter.name))) for parameter in parameters)
    return {parameter.name: dependency for parameter, dependency in found if dependency is not None}


def _parameters(handler: Callable[..., Any], without: frozenset[str]) -> list[inspect.Parameter]:
    try:
        parameters = [
            parameter for parameter in inspect.signature(handler).parameters.values() if parameter.name not in without
        ]
    except (TypeError, ValueError) as error:
        raise SetupError("The handler's parameters are unknown", fix="write a function around it") from error
    if not 1 <= len(parameters) <= 2 or any(parameter.kind not in _POSITIONAL for parameter in parameters):
        names = [str(parameter) for parameter in parameters]
        fix = "write (task) or (task, ctx: Context); any other has a default Depends(...), or a type that is provided"
        raise SetupError(_TASK_AND_CONTEXT, parameters=names, fix=fix)
    return parameters


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        fix = "import what it names at the top of the file, not under TYPE_CHECKING"
        raise SetupError("An annotation is unknown", of=shown(function), reason=str(error), fix=fix) from error


def _is_context(hint: object) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, TaskContext) for kind in (hint, *get_args(hint)))


def _codec(parameter: str, hint: Any) -> Codec:
    try:
        return BYTES if hint is bytes else codec(hint)
    except SetupError as error:
        error.facts["parameter"] = parameter
        raise
    except TypeError as error:  # an annotation that is no type, such as a dict with values
        raise SetupError("The annotation is no type", parameter=parameter, fix="use a type, or none") from error


# Handlers that yield their result in parts, wrapped so that the runtime calls them like handlers of one value.
#
# A requester that asked for a stream gets each part as it is yielded, and their number as the task's value. Any other
# requester, and a workflow, gets all parts as one list.

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


def in_parts(handler: Callable[..., Any], part: Codec, context_name: str | None) -> Callable[..., Any]:
    """Return a handler that runs a generator handler, and returns all parts as a list, or the number it streamed.

    It takes the task, a context and dependencies.
    It returns all parts as a list of JSON values; when they are streamed, their number. The generator is closed at the
    end of the attempt, also when the attempt is canceled or its time is over.
    """

    @wraps(handler)
    async def on_loop(task: Any, coditect_context: TaskContext, **values: Any) -> Any:
        sink = _Sink(coditect_context, part)
        try:
            async with aclosing(handler(task, **_named(context_name, coditect_context), **values)) as parts:
                async for value in parts:
                    if sink.streamed:
                        await sink.send(value)
                    else:
                        sink.collect(value)
        except Exception:
            await sink.failed()
            raise
        return await coditect_context.services.end_parts(complete=True) if sink.streamed else sink.whole()

    @wraps(handler)
    def in_thread(task: Any, coditect_context: TaskContext, **values: Any) -> Any:
        sink, services = _Sink(coditect_context, part), coditect_context.services
        try:
            with closing(handler(task, **_named(context_name, coditect_context), **values)) as parts:
                for value in parts:
                    if sink.streamed:
                        services.run(sink.send(value))
                    else:
                        sink.collect(value)
        except Exception:
            services.run(sink.failed(), closing=True)
            raise
        return services.run(services.end_parts(complete=True)) if sink.streamed else sink.whole()

    return on_loop if inspect.isasyncgenfunction(handler) else in_thread


# The values beside the input that a handler gets: dependencies, found by default value or by type, and the lifespan.
#
# Dependencies are resolved when the handler is declared. They are made for each task, each provider once, and closed
# after the handler in reverse order, also when it failed.


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
        code = getattr(provider, "__code__", None)
        at = "" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
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

    @wraps(handler)
    async def on_loop(task: Any, ctx: Any) -> Any:
        opened: list[AsyncGenerator[Any]] = []
        try:
            shared = (ctx[0] if isinstance(ctx, list) else ctx).lifespan  # a batch has many contexts, of one process
            values = await _opened(needs, shared, opened)
            result = await handler(task, **_named(context_name, ctx), **values)
        except BaseException as error:
            await _closed(opened, error)
            raise
        await _closed(opened, None)
        return result

    @wraps(handler)
    def in_thread(task: Any, ctx: Any) -> Any:
        opened: list[AsyncGenerator[Any]] = []
        try:
            values = ctx.services.run(_opened(needs, ctx.lifespan, opened))
            result = handler(task, **_named(context_name, ctx), **values)
        except BaseException as error:
            ctx.services.run(_closed(opened, error), closing=True)
            raise
        ctx.services.run(_closed(opened, None), closing=True)
        return result

    return on_loop if inspect.iscoroutinefunction(handler) else in_thread


def _named(context_name: str | None, ctx: Any) -> dict[str, Any]:
    """Return the context as an argument of a handler; nothing for a handler that has no parameter for it."""
    return {} if context_name is None else {context_name: ctx}


async def _opened(
    needs: tuple[tuple[str, Dependency], ...],
    lifespan: Any,
    opened: list[AsyncGenerator[Any]],
    made: dict[Any, Any] | None = None,
) -> Mapping[str, Any]:
    """Create the values of a handler's dependencies, calling each provider only once; `_closed(opened)` closes them."""
    made = {} if made is None else made
    values: dict[str, Any] = {}
    for name, dependency in needs:
        provider = dependency.provider
        if provider is None:
            values[name] = lifespan
            continue
        if provider not in made:
            made[provider] = await _made(provider, await _opened(dependency.needs, lifespan, opened, made), opened)
        values[name] = made[provider]
    return values


async def _made(provider: Callable[..., Any], needs: Mapping[str, Any], opened: list[AsyncGenerator[Any]]) -> Any:
    if inspect.isasyncgenfunction(provider):
        generator = provider(**needs)
        try:
            value = await anext(generator)
        except StopAsyncIteration:
            raise RuntimeError(_YIELDS_ONCE) from None
        opened.append(generator)
        return value
    value = provider(**needs)
    return await value if inspect.isawaitable(value) else value


async def _closed(opened: list[AsyncGenerator[Any]], error: BaseException | None) -> None:
    """Close the generators of providers, the last one first; the handler's error, if any, is raised at their `yield`.

    A provider that catches the error does not undo it: the caller raises it again, with its old traceback. `contextlib`
    would not do here: it sets attributes of the error and asks for others, and the error's class may refuse both.

    Raises:
        BaseException: what a provider raises in place of the error; the providers still to be closed get that instead.
    """
    while opened:
        try:
            await _resumed(opened.pop(), error)
        except BaseException as other:
            await _closed(opened, other)
            raise


async def _resumed(generator: AsyncGenerator[Any], error: BaseException | None) -> None:
    trace = None if error is None else trace_of(error)
    try:
        await (anext(generator) if error is None else generator.athrow(error))
    except StopAsyncIteration:
        return
    except BaseException as raised:
        if error is None or original_error(raised) is not error:
            raise
        return
    finally:
        if error is not None:
            BaseException.with_traceback(error, trace)  # without the frames of the provider
    await generator.aclose()
    raise RuntimeError(_YIELDS_ONCE)


# The lifespan of an agent: what its handlers share, opened before the first task and closed after the drain.

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]
"""A function of the agent that returns an async context manager, as `contextlib.asynccontextmanager` makes it."""
_LIFESPAN_SHAPE = "@asynccontextmanager above `async def lifespan(agent): ...; yield what_the_handlers_share; ...`"


def checked_lifespan(lifespan: object) -> Lifespan | None:
    """Check that an agent's lifespan is None, or a function that takes the agent; return it without calling it.

    Raises:
        InputError: when it is no function of one parameter, or yields without `@asynccontextmanager`.
    """
    if lifespan is None:
        return None
    if not callable(lifespan) or inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan):
        arguments.refuse(
            "lifespan", "A lifespan is a function that returns an async context manager", lifespan, _LIFESPAN_SHAPE
        )
    try:
        inspect.signature(lifespan).bind("agent")
    except (TypeError, ValueError):
        arguments.refuse("lifespan", "A lifespan takes the agent and nothing else", lifespan, _LIFESPAN_SHAPE)
    return lifespan


@asynccontextmanager
async def lived(lifespan: Lifespan | None, agent: Any) -> AsyncIterator[Any]:
    """Open an agent's lifespan, if any, for the block and yield its value; the lifespan sees no error of the block.

    Raises:
        SetupError: when the lifespan raised anything at its start or stop; that is the cause.
        CancelledError: when the program was canceled meanwhile.
    """
    if lifespan is None:
        yield None
        return
    with _failing("The agent's lifespan failed at its start", agent):
        manager = lifespan(agent)
        if not isinstance(manager, AbstractAsyncContextManager):
            raise TypeError(f"{shown(manager)} is no async context manager")
        value = await manager.__aenter__()
    try:
        yield value
    finally:
        with _failing("The agent's lifespan failed at its stop", agent):
            await manager.__aexit__(None, None, None)


@contextmanager
def _failing(sentence: str, agent: Any) -> Iterator[None]:
    """Raise a SetupError in place of what the block raises, except a cancellation, or a close, from outside."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    try:
        yield
    except BaseException as error:
        kind = type(error)
        if issubclass(kind, asyncio.CancelledError) and cancellations():
            raise
        if issubclass(kind, GeneratorExit) and asyncio.current_task(loop) is not task:
            raise  # it ends a coroutine that no asyncio task runs any more
        error = original_error(error)
        raise _failed(sentence, agent, error) from error


def _failed(sentence: str, agent: Any, error: BaseException) -> SetupError:
    trace, at = trace_of(error), ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == getattr(agent.lifespan, "__name__", ""):
            at = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    reason = error_message(error)
    if not issubclass(type(error), CoditectError):
        reason = f"{error_name(error)}: {reason}"
    fix = "see to what it opens; an agent does not run without it"
    return SetupError(sentence, agent=agent.name, at=at, reason=reason, fix=fix)


# Middleware around the tasks of an agent: functions that see each task on its way to the handler and back.
#
# The functions are chained once, when the agent starts; a task of an agent without middleware meets none of this.


class MiddlewareContext(Context):
    """The execution of a task as middleware sees it: the context of an async handler, and the input."""

    def __init__(self, inside: TaskContext, value: Any, handle: Callable[[Any], Awaitable[Any]]) -> None:
        """Describe one call: the handler's context, the decoded input, and the function that calls the handler."""
        super().__init__(inside._task, inside.task_id, inside.agent_id, inside.services, headers=inside._headers)
        self._inside, self._asked, self._handle = inside, inside._asked, handle
        self.input = value
        """The validated input of the task; middleware may set another one, which is not validated again."""

    @property
    def workspace(self) -> Path:
        """The temporary folder of the execution, which the handler has, too."""
        return self._inside.workspace

    def handled(self) -> Awaitable[Any]:
        """Call the handler, inside all middleware, with the present input, which middleware may have replaced."""
        return self._handle(self.input)


CallNext = Callable[[MiddlewareContext], Awaitable[Any]]
"""The function that middleware calls to run the next middleware or the handler; it returns the handler's value."""
Middleware = Callable[[MiddlewareContext, CallNext], Awaitable[Any]]
_MIDDLEWARE_SHAPE = "async def middleware(ctx: MiddlewareContext, call_next: CallNext): return await call_next(ctx)"


def checked_middleware(middleware: object) -> Middleware:
    """Check that middleware is an async function of a context and the next call, and return it.

    Raises:
        SetupError: when it is not async, or takes other parameters.
    """
    call = getattr(middleware, "__call__", None)  # noqa: B004 - an object may be middleware by its method
    if not callable(middleware) or not (inspect.iscoroutinefunction(middleware) or inspect.iscoroutinefunction(call)):
        raise SetupError("Middleware is an async function", given=shown(middleware), fix=_MIDDLEWARE_SHAPE)
    try:
        signature = inspect.signature(middleware)
        signature.bind("ctx", "call_next")
        if next(iter(signature.parameters)) == "call_next":
            raise TypeError("the context comes first")
    except (TypeError, ValueError):
        raise SetupError(
            "Middleware takes the context and the next call", given=shown(middleware), fix=_MIDDLEWARE_SHAPE
        ) from None
    return middleware


def chained(stack: Iterable[Middleware]) -> CallNext | None:
    """Return the call that passes a task through middleware, the first one outermost; None without any."""
    call: CallNext | None = None
    for middleware in reversed(tuple(stack)):
        call = partial(_passed, middleware, call or MiddlewareContext.handled)
    return call


def _passed(middleware: Middleware, call_next: CallNext, ctx: MiddlewareContext) -> Awaitable[Any]:
    return middleware(ctx, call_next)
