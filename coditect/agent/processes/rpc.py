"""The remote calls by which a handler in a worker process uses its agent's services, such as requests and locks.

A service is a method of `Services` and its implementation. It takes JSON values and at most one argument of bytes; the
result of an awaited service is a JSON value or an `Outcome`. `breaker` is a context manager: a call enters it,
and a LEAVE frame leaves it with the verdict of the worker, which has the exception.
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from coditect import errors
from coditect.agent.handlers.port import Services
from coditect.agent.processes.protocol import Frame, FrameKind
from coditect.errors import CoditectError
from coditect.model.limits.breaker import CallVerdict
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome
from coditect.wire.tasks import read_result, result_message

if TYPE_CHECKING:
    from coditect.resilience.breaker import GuardedCall

BREAKER = "breaker"


def is_awaited(service: str) -> bool:
    """Tell whether a worker process waits for an answer when it calls the named method of `Services`.

    It does for the coroutine functions and for `breaker`.

    Raises:
        AttributeError: when `Services` has no such service.
    """
    if service.startswith("_"):
        raise AttributeError(service)
    return service == BREAKER or inspect.iscoroutinefunction(getattr(Services, service))


def call_frame(number: int, service: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> Frame:
    """Return the message that calls a service of the agent; one positional argument may be bytes, the rest are JSON."""
    place = next((place for place, one in enumerate(arguments) if isinstance(one, bytes)), None)
    told = [None if at == place else one for at, one in enumerate(arguments)]
    head = {"number": number, "service": service, "arguments": told, "options": options, "bytes": place}
    return Frame(FrameKind.CALL, head, b"" if place is None else arguments[place])


class WorkerRpc:
    """The agent's side of a worker's service calls: runs each call, and sends the answers of awaited calls."""

    def __init__(self, services: Services, group: asyncio.TaskGroup, send: Callable[[Frame], None]) -> None:
        self._services = services
        self._group = group
        self._send = send
        self._awaited: dict[int, asyncio.Task[None]] = {}
        self._guarded: dict[int, GuardedCall] = {}
        """The calls of dependencies that breakers guard, while they go on."""

    def run(self, frame: Frame) -> None:
        """Carry out a worker's message: begin a call of a service, cancel a call, or end a call that a breaker guards.

        An awaited call runs in the background.

        Raises:
            ValueError: when the frame is of a kind that a worker does not send.
            AttributeError: when there is no such service.
        """
        match frame.kind:
            case FrameKind.CALL:
                self._call(frame)
            case FrameKind.ABANDON:
                if frame.head in self._awaited:
                    self._awaited[frame.head].cancel()
                self._leave(frame.head, CallVerdict.NEUTRAL)
            case FrameKind.LEAVE:
                self._leave(frame.head["number"], CallVerdict(frame.head["verdict"]))
            case _:
                raise ValueError(f"a worker does not say {frame.kind.name}")

    def cancel(self) -> None:
        """Cancel the calls that still run, because the worker does not await their answers any more."""
        for call in self._awaited.values():
            call.cancel()
        for number in tuple(self._guarded):
            self._leave(number, CallVerdict.NEUTRAL)

    def _leave(self, number: int, verdict: CallVerdict) -> None:
        if (call := self._guarded.pop(number, None)) is not None:
            call.record(verdict)

    async def _enter(self, number: int, breaker: str) -> int | None:
        call = cast("GuardedCall", self._services.breaker(breaker))
        await call.__aenter__()
        self._guarded[number] = call
        return call.permit

    def _call(self, frame: Frame) -> None:
        number, service, arguments = frame.head["number"], frame.head["service"], frame.head["arguments"]
        awaited = is_awaited(service)
        if frame.head["bytes"] is not None:
            arguments[frame.head["bytes"]] = frame.body
        called = partial(self._enter, number) if service == BREAKER else getattr(self._services, service)
        call = partial(called, *arguments, **frame.head["options"])
        if not awaited:
            call()
            return
        self._awaited[number] = self._group.create_task(self._answer(number, call), name=f"{service} of a worker")
        self._awaited[number].add_done_callback(lambda _: self._awaited.pop(number, None))

    async def _answer(self, number: int, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            frame = _answer(number, await call())
        except Exception as error:  # noqa: BLE001 - the handler that asked gets the error, and may catch it
            frame = Frame(FrameKind.ANSWER, {"number": number, "error": described(error)})
        self._send(frame)


def _answer(number: int, result: Any) -> Frame:
    """Return the message that answers a call of a service with its result: an `Outcome`, or a JSON value."""
    if not isinstance(result, Outcome):
        return Frame(FrameKind.ANSWER, {"number": number, "value": result})
    message = result_message(result, capability="")
    told = {"headers": dict(message.headers), "correlation_id": message.correlation_id}
    head = {"number": number, "message": told | {"content_type": message.content_type}}
    return Frame(FrameKind.ANSWER, head, message.body)


def described(error: Exception) -> dict[str, Any]:
    """Return an error as JSON values, from which `error_in` rebuilds the error."""
    if not isinstance(error, CoditectError):
        return {"type": type(error).__name__, "sentence": Failure.from_error(error, "").message, "facts": {}}
    facts = {name: value if isinstance(value, int | float) else str(value) for name, value in error.facts.items()}
    return {"type": type(error).__name__, "sentence": error.sentence, "facts": facts}


def error_in(told: Mapping[str, Any]) -> Exception:
    """Rebuild an error from the JSON values that `described` made.

    The error has the same type if that is one of `coditect.errors` or of Python, else it is a CoditectError.
    """
    kind = getattr(errors, told["type"], None) or getattr(builtins, told["type"], None)
    if isinstance(kind, type) and issubclass(kind, CoditectError):
        return kind(told["sentence"], **told["facts"])
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError | ExceptionGroup):
        return kind(told["sentence"])
    return CoditectError(told["sentence"], **{"type": told["type"]} | told["facts"])


def result_in(frame: Frame) -> Any:
    """Return the result of a service call from the agent's answer, or raise the service's error.

    Raises:
        Exception: the error with which the service ended, of the same type.
    """
    head = frame.head
    if (told := head.get("error")) is not None:
        raise error_in(told)
    if "value" in head:
        return head["value"]
    return read_result(Message(frame.body, **head["message"]))
