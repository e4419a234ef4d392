"""The reports of discussion threads and their messages, as the control plane keeps them, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from coditect.model.row import Row, read_row


@dataclass(frozen=True, slots=True)
class ThreadMessage(Row):
    """A message in a discussion thread."""

    number: int
    """Its place in the thread, from 1."""
    message: str
    """The id of the message."""
    sender: str
    """The participant that said it."""
    by: str
    """The agent process or client that sent it."""
    task: str
    """The task whose handler said it; empty for a client's."""
    type: str
    value: Any
    to: list[str]
    """The participants that it is for; empty for all."""
    metadata: dict[str, Any]
    at_ms: int
    """When it was said, in milliseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class ThreadRow:
    """A discussion thread: its participants, the task or workflow it is bound to, and its last message."""

    thread: str
    """The id of the thread."""
    type: str
    title: str
    participants: list[str]
    task: str
    """The task that the thread is bound to; empty without one."""
    workflow: str
    """The workflow that the thread is bound to; empty without one."""
    opener: str
    begun_ms: int
    last_ms: int
    """When the last message was said, or the thread was opened or closed."""
    keep_ms: int
    """For how long after that the thread is kept."""
    last: int
    """The number of the last message; 0 without one."""
    closed_ms: int
    """When the thread was closed; 0 while it is open."""
    reason: str
    """Why it was closed."""
    ticket: str = ""
    """The ticket of another system that the thread is about; empty without one."""
    metadata: dict[str, Any] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    """The number of the last message that each participant has read; empty in a listing."""

    @classmethod
    def of(cls, row: object) -> ThreadRow:
        """Parse a thread from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(cls, row)
