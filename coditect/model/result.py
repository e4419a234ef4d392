"""How a task ended: a status, and a value or a failure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from coditect.model.ids import AgentId
from coditect.model.value import value


class Status(StrEnum):
    """How a task ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"


ENDED_AS = MappingProxyType({status: f"task.{status.value}" for status in Status})
"""Types of the events that end a task's story."""
ENDINGS = frozenset(ENDED_AS.values())
EXPIRED = frozenset({"expired", "start_timeout", "deadline"})
"""Reasons of failures that say that its time was over: the first of a task without an owner, the others of a node."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no value."""

    reason: str
    """One word a program can act on: handler_error, timeout, process_died, deadline, start_timeout, invalid_input,
    too_large, unknown_capability, expired, canceled, result_too_large, ..."""
    type: str
    """Name of the exception."""
    message: str
    traceback: str = ""
    retryable: bool = False
    fix: str = ""
    """What to do about it, when that is known."""

    def __post_init__(self) -> None:
        """Escapes what has no UTF-8: a failure must be told, whatever a handler's exception says."""
        for name in ("type", "message", "traceback", "fix"):
            text = getattr(self, name)
            if not text.isascii():
                object.__setattr__(self, name, text.encode(errors="backslashreplace").decode())

    def as_json(self) -> dict[str, object]:
        """The body of a failed result."""
        return {
            "reason": self.reason,
            "type": self.type,
            "message": self.message,
            "traceback": self.traceback,
            "retryable": self.retryable,
            "fix": self.fix,
        }


NOT_BEGUN = Failure("not_begun", "AgentStopped", "The agent was stopped before the task began", retryable=True)
"""What an agent says of an attempt that it was granted and gives back: the same attempt is for another agent."""


@value
class Outcome:
    """The end of a task, as it comes back. `body` is the JSON of the value, or of the failure."""

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
    """Whether claims stand in the body for large values, which were not fetched yet."""
