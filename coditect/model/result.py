"""The outcome of a task: a status, and a value or a failure."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, cast

from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.model.message import value

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

MAX_NAME_CHARS = 200
MAX_MESSAGE_CHARS = 2_000
MAX_TRACEBACK_CHARS = 8_000
MAX_FRAMES = 100
"""Number of frames, the innermost ones, that a traceback shows of each exception."""
_NO_MESSAGE = "It has no message: its class cannot be printed"
_REPLACED = frozenset(
    {
        "coroutine raised StopIteration",
        "generator raised StopIteration",
        "async generator raised StopIteration",
        "async generator raised StopAsyncIteration",
    }
)
"""The messages of the errors by which Python replaces an exception that would end a generator (PEP 479)."""


class Status(StrEnum):
    """The final status of a task: completed, failed, canceled or rejected."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"


ENDED_AS = MappingProxyType({status: f"task.{status.value}" for status in Status})
"""The type of the event that a task publishes at its end, by the task's status."""
ENDINGS = frozenset(ENDED_AS.values())
EXPIRED = frozenset({"expired", "start_timeout", "deadline"})
"""Failure reasons of a task whose time limit passed: `expired` of a direct task, the others of a workflow's node."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a task has no value: a machine-readable reason, an error type and a message."""

    reason: str
    """One word on which a program can act, such as `handler_error` or `timeout`.

    Others are retry_after, process_died, deadline, start_timeout, invalid_input, too_large, unknown_capability,
    expired, canceled, not_taken and result_too_large.
    """
    type: str
    """Name of the exception."""
    message: str
    traceback: str = ""
    retryable: bool = False
    fix: str = ""
    """Advice how to remove the cause; empty when there is none."""

    def __post_init__(self) -> None:
        """Escape characters that UTF-8 cannot encode, so that a failure with any text can be sent."""
        for name in ("type", "message", "traceback", "fix"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    @classmethod
    def from_error(cls, error: BaseException, reason: str, *, caller: str = "") -> Self:
        """Return the failure that describes an exception of a handler, whatever the exception's class does when asked.

        `caller` is the file of the code that called the handler: the frames above the handler's own are left out.
        """
        error = original_error(error)
        fix = ""
        if issubclass(type(error), CoditectError):
            fix = _text(lambda: error.facts.get("fix", ""), otherwise="")  # type: ignore[attr-defined]
        return cls(
            reason,
            type=error_name(error),
            message=error_message(error),
            traceback=_traceback(error, caller),
            retryable=may_be_retried(error),
            fix=fix,
        )

    @classmethod
    def read(cls, document: Mapping[str, object]) -> Self:
        """Return the failure in a JSON object that `as_json` made; a text that is not there is empty."""
        words = {name: str(document.get(name) or "")[:255] for name in ("reason", "type")}
        texts = {name: str(document.get(name) or "") for name in ("message", "traceback", "fix")}
        return cls(retryable=document.get("retryable") is True, **words, **texts)

    def as_event(self) -> dict[str, str]:
        """Return what events about failed attempts say of the failure."""
        return {"reason": self.reason, "type": self.type, "error": self.message, "fix": self.fix}

    def as_json(self) -> dict[str, object]:
        """Return the failure as the JSON object that a failed result has as its body."""
        return {
            "reason": self.reason,
            "type": self.type,
            "message": self.message,
            "traceback": self.traceback,
            "retryable": self.retryable,
            "fix": self.fix,
        }


def original_error(error: BaseException) -> BaseException:
    """Return the exception that a handler raised, where Python replaced it by a `RuntimeError` (PEP 479)."""
    cause = ask_error(lambda: error.__cause__, otherwise=None)
    if cause is not None and type(error) is RuntimeError and _text(lambda: error, otherwise="") in _REPLACED:
        return cause
    return error


def first_in(error: BaseException | None, kind: type[E]) -> E | None:
    """Return an exception if it is of a kind, else the first one of that kind in its exception group; else None."""
    left = [error]
    while left:
        error = left.pop()
        if issubclass(type(error), kind):
            return cast("E", error)
        if issubclass(type(error), BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            left += ask_error(lambda: group.exceptions[::-1], otherwise=())  # noqa: B023 - called at once
    return None


def error_name(error: BaseException) -> str:
    """Return the name of an exception's class; `BaseException` if a metaclass hides the name."""
    return ask_error(lambda: str.__str__(type(error).__name__)[:MAX_NAME_CHARS], otherwise=BaseException.__name__)


def error_message(error: BaseException) -> str:
    """Return an exception's message, at most 2,000 characters, or a substitute if the message cannot be printed."""
    return _text(lambda: error, otherwise=_NO_MESSAGE)


def trace_of(error: BaseException) -> TracebackType | None:
    """Return an exception's traceback, also when its class hides the attribute or has another under its name."""
    kinds = type(error).__mro__
    at = kinds.index(BaseException)
    found: Any = super(kinds[at - 1], error) if at else error  # which has no attributes but those of BaseException
    trace: TracebackType | None = found.__traceback__
    return trace


def may_be_retried(error: BaseException) -> bool:
    """Tell whether an exception allows another attempt: unless its `retryable` attribute is False."""
    return ask_error(lambda: getattr(error, "retryable", True) is not False, otherwise=True)


def ask_error(question: Callable[[], T], *, otherwise: T) -> T:
    """Return the answer to a question about a handler's exception, or `otherwise` if the exception's class fails."""
    try:
        return question()
    except BaseException:  # noqa: BLE001 - even SystemExit, raised by a `__str__`
        return otherwise


def _text(question: Callable[[], object], *, otherwise: str) -> str:
    return ask_error(lambda: str.__str__(str(question()))[:MAX_MESSAGE_CHARS], otherwise=otherwise)


def _traceback(error: BaseException, caller: str) -> str:
    """Return the last 8,000 characters of an exception's traceback, without the caller's frames above the handler."""
    trace = trace_of(error)
    while trace is not None and trace.tb_frame.f_code.co_filename == caller:
        trace = trace.tb_next
    lines = ask_error(
        lambda: traceback.format_exception(type(error), error, trace, limit=-MAX_FRAMES),
        otherwise=["Traceback (most recent call last):\n"],
    )
    if len(lines) == 1 and trace is not None:  # the exception cannot be printed: its frames can
        lines += ask_error(lambda: traceback.format_tb(trace, limit=-MAX_FRAMES), otherwise=[])
        lines.append(f"{error_name(error)}: {error_message(error)}\n")
    return "".join(line if len(line) <= MAX_MESSAGE_CHARS else _shortened(line) for line in lines)[
        -MAX_TRACEBACK_CHARS:
    ]


def _shortened(line: str) -> str:
    return f"{line[:MAX_MESSAGE_CHARS]} ...\n"


RETRY_AFTER = "retry_after"
"""The failure reason of an attempt whose handler asked for another one after a delay."""

NOT_BEGUN = Failure("not_begun", "AgentStopped", "The agent was stopped before the task began", retryable=True)
"""The failure of a granted attempt that an agent returns unstarted, so that another agent runs the same attempt."""
NOT_TAKEN = Failure("not_taken", "NotTaken", "The agent that alone may run the task did not take it", retryable=True)
"""The failure of a task for one agent alone that reached another one, since its agent was busy, or gone."""
INTERRUPTED = Failure("interrupted", "AgentStopped", "The agent was stopped before the task ended", retryable=True)
"""The failure of an attempt that the drain of its agent broke off; as a rule it does not count."""


@value
class Outcome:
    """The end of a task as its result message carries it; `body` is the value, or the JSON of the failure."""

    status: Status
    body: bytes
    task_id: str | None
    correlation_id: str | None
    agent_id: AgentId | None = None
    attempt: int = 1
    fence: int | None = None
    started_at_ms: int | None = None
    """Epoch milliseconds at the agent when the handler began."""
    finished_at_ms: int | None = None
    """Epoch milliseconds at the agent when the handler ended."""
    failure: Failure | None = None
    claims: bool = False
    """Whether the body holds blob references whose large values were not fetched yet."""
    retry_ms: int | None = None
    """The delay before the next attempt by the capability's own retry policy; None without a next attempt.

    Only the result of a workflow task's failed attempt has one, for its owner.
    """
    binary: bool = False
    """Whether the value is bytes, and not JSON."""
