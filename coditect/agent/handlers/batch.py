"""Handlers of batches: each takes a list of inputs, optionally also one of contexts, and returns a list of values.

The types of a single task are those inside the lists. Each task is validated, limited, retried and answered by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce, wraps
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

from coditect.errors import SetupError
from coditect.model import arguments
from coditect.model.arguments import shown
from coditect.model.duration import Duration, seconds

DEFAULT_WITHIN: Duration = "50ms"
LONGEST_WITHIN_SECONDS = 60.0
_SHAPE = "async def handler(items: list[Item], contexts: list[Context]) -> list[Value | Exception]; contexts if wanted"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The declared size of a capability's batches, and how long the first task of one waits for others."""

    size: int
    within_seconds: float


def batch_policy(size: int | None, within: Duration | None, *, slots: int) -> BatchPolicy | None:
    """Return the checked policy of a capability's batches; None without a size. `slots` is how many tasks may run.

    Raises:
        InputError: when a value is outside its range, or a batch needs more slots than there are.
    """
    if size is None:
        if within is not None:
            arguments.refuse("within", "Only a batch waits for other tasks", within, "batch=100 beside it")
        return None
    if arguments.whole("batch", size, 1, 10_000) > slots:
        fix = f"Agent(slots={size + 1}), of which one is kept for P0, or a smaller batch"
        arguments.refuse("batch", "Each task of a batch holds a slot", size, fix)
    within_seconds = seconds(arguments.span("within", DEFAULT_WITHIN if within is None else within))
    if not 0 < within_seconds <= LONGEST_WITHIN_SECONDS:
        arguments.refuse("within", "A task waits above 0 and at most 60 s for its batch", within, 'such as "50ms"')
    return BatchPolicy(size, within_seconds)


def checked_batch_handler(handler: Callable[..., Any], *, process: bool) -> None:
    """Check that a handler of batches runs on the event loop.

    Raises:
        SetupError: when it does not.
    """
    if process or not inspect.iscoroutinefunction(handler):
        fix = "write async def; what blocks goes to asyncio.to_thread(...), or to a pool of processes of your own"
        raise SetupError("A handler of batches is an async function, without process=True", fix=fix)


def hints_of_one(hints: Mapping[str, Any], parameters: Sequence[str]) -> dict[str, Any]:
    """Return the annotations of a handler of batches as those of a handler of one task: the types inside the lists.

    Raises:
        SetupError: when an annotation is no list.
    """
    inside = dict(hints)
    for name in (*parameters[:2], "return"):
        if (hint := hints.get(name, Any)) is Any:
            continue
        if get_origin(hint) is not list and hint is not list:
            raise SetupError("A handler of batches takes and returns lists", parameter=name, fix=_SHAPE)
        inside[name] = next(iter(get_args(hint)), Any)
    if "return" in inside:
        inside["return"] = _without_errors(inside["return"])
    return inside


def _without_errors(hint: Any) -> Any:
    """Return the annotation of a batch's values without the exceptions that may be returned in place of a value."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    values = [one for one in members if not (isinstance(one, type) and issubclass(one, BaseException))]
    return reduce(or_, values) if values else None


def results_of(returned: Any, many: int) -> Sequence[Any]:
    """Return the values and errors of a batch of `many` tasks, after a check of their number.

    Raises:
        SetupError: when there is not one for each task; no attempt is made again, for the code would do the same.
    """
    if not isinstance(returned, list | tuple) or len(returned) != many:
        number = len(returned) if isinstance(returned, list | tuple) else shown(returned)
        raise SetupError(
            "A handler of batches returns a list with one value, or exception, for each task, in their order",
            tasks=many,
            returned=number,
        )
    return returned


def of_one(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return a handler of one task that calls a handler of batches with lists of one element."""

    @wraps(handler)
    async def one(*given: Any) -> Any:
        (result,) = results_of(await handler(*([part] for part in given)), 1)
        if isinstance(result, BaseException):
            raise result
        return result

    return one
