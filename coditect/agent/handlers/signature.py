"""The signature of a handler, `(task)` or `(task, ctx)`: its input and output types, as its annotations declare."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

from coditect.agent.handlers.batch import hints_of_one
from coditect.agent.handlers.context import PlainContext, TaskContext
from coditect.agent.handlers.dependencies import Dependency, Providers
from coditect.agent.handlers.parts import yields
from coditect.codec import BYTES, Codec, codec
from coditect.errors import SetupError
from coditect.model.arguments import shown

CONTEXT_NAMES = frozenset({"ctx", "context", "_ctx", "_context", "_"})
"""Names by which a second parameter without an annotation is recognized as the Context."""
_YIELDING = (AsyncIterator, AsyncGenerator, AsyncIterable, Iterator, Generator, Iterable)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
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
    hints = _hints(handler)
    part = _part_type(handler, hints.get("return", Any)) if yields(handler) else None
    needs = _dependencies(handler, hints, providers)
    parameters = _parameters(handler, frozenset(needs))
    if of_batches:
        if part is not None:
            raise SetupError("A handler of batches returns a list; this one yields", fix="leave batch=... out")
        hints = hints_of_one(hints, [one.name for one in parameters])
    task, *others = parameters
    if _is_context(hints.get(task.name)):
        raise SetupError(_TASK_AND_CONTEXT, parameter=task.name, fix="write (task, ctx: Context)")
    for other in others:
        hint = hints.get(other.name, Any)
        if not (_is_context(hint) or (hint is Any and other.name in CONTEXT_NAMES)):
            fix = "write (task, ctx: Context); input of several parts is one model, a dataclass or a dict"
            raise SetupError("The second parameter of a handler is its Context", parameter=other.name, fix=fix)
    return Signature(
        input=_codec(task.name, hints.get(task.name, Any)),
        output=_codec("return", hints.get("return", Any)) if part is None else _collected(part),
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


def _collected(part: Any) -> Codec:
    """Return the codec of a result in parts (a list, or the number of streamed parts), with the list's schema."""
    return Codec(schema=_codec("return", list[part]).schema)


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
    found = ((one, providers.find(one, hints.get(one.name))) for one in parameters)
    return {one.name: dependency for one, dependency in found if dependency is not None}


def _parameters(handler: Callable[..., Any], without: frozenset[str]) -> list[inspect.Parameter]:
    try:
        parameters = [one for one in inspect.signature(handler).parameters.values() if one.name not in without]
    except (TypeError, ValueError) as error:
        raise SetupError("The handler's parameters are unknown", fix="write a function around it") from error
    if not 1 <= len(parameters) <= 2 or any(one.kind not in _POSITIONAL for one in parameters):
        names = [str(one) for one in parameters]
        fix = "write (task) or (task, ctx: Context); any other has a default Depends(...), or a type that is provided"
        raise SetupError(_TASK_AND_CONTEXT, parameters=names, fix=fix)
    return parameters


def _hints(handler: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(_function(handler))
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        fix = "import what it names at the top of the file, not under TYPE_CHECKING"
        raise SetupError("A handler's annotation is unknown", reason=str(error), fix=fix) from error


def _is_context(hint: object) -> bool:
    return any(isinstance(one, type) and issubclass(one, TaskContext) for one in (hint, *get_args(hint)))


def _codec(parameter: str, hint: Any) -> Codec:
    try:
        return BYTES if hint is bytes else codec(hint)
    except SetupError as error:
        error.facts["parameter"] = parameter
        raise
    except TypeError as error:  # an annotation that is no type, such as a dict with values
        raise SetupError("The annotation is no type", parameter=parameter, fix="use a type, or none") from error
