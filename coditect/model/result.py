"""The outcome of a task: a status, and a value or a failure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from coditect.model.ids import AgentId
from coditect.model.value import value


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
    expired, canceled and result_too_large.
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


RETRY_AFTER = "retry_after"
"""The failure reason of an attempt whose handler asked for another one after a delay."""

NOT_BEGUN = Failure("not_begun", "AgentStopped", "The agent was stopped before the task began", retryable=True)
"""The failure of a granted attempt that an agent returns unstarted, so that another agent runs the same attempt."""


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
