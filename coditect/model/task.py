"""Tasks: one piece of work for any agent with the capability, with limits and an optional owner.

======================  =======================================================
states                  blocked → ready → published → working → completed | failed |
                        canceled | rejected | skipped | dead (+ retry_wait, awaiting_approval)
task ≠ job (RQ's) ≠ message (AMQP's) ≠ delivery (a message in hand, settled exactly once)
======================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import HeaderTable, value

ExecutionKey = tuple[str, int, int, int, str, int]
MAX_DEPTH = 64
"""The deepest nesting of tasks that request tasks, which ends agents that request each other in a circle."""
MOST_AHEAD = 1_000
"""The largest number of parts of a streamed result that a requester may let an agent send ahead."""


@value
class Limits:
    """The limits of a task: time, attempts, agent; instants are Unix times in milliseconds, None means no limit."""

    deadline_ms: int | None = None
    """The instant after which the result is worthless: the task is not started any more, and cut short when it runs."""
    start_by_ms: int | None = None
    """The instant after which the task is not started any more."""
    timeout_ms: int | None = None
    """Longest run of one attempt, at most the capability's own timeout, which applies when None."""
    max_attempts: int | None = None
    """Number of attempts in all, at most the capability's own number, which applies when None."""
    only: AgentId | None = None
    """The agent that alone may run the task; None means any agent that offers the capability."""


NO_LIMITS = Limits()


@value
class Owner:
    """The workflow node that a task belongs to; after a failure its dispatcher, not the agent, decides on a retry."""

    workflow: str
    node: str
    origin: str
    """The shard whose dispatcher records the task's outcome."""
    fence: int


@value
class Task:
    """A task as an agent receives it; the body is the task's input and nothing else."""

    capability: str
    priority: Priority
    body: bytes
    id: TaskId | None = None
    """The task's id; None for a foreign publisher that gave no `message_id`, and then no duplicate is recognized."""
    correlation_id: str | None = None
    reply_to: str | None = None
    limits: Limits = NO_LIMITS
    attempt: int = 1
    publication: int = 0
    redrive: int = 0
    """How many times the task was redriven from the dead letters."""
    depth: int = 0
    """How deep the task is nested in requests: 0 for a client's task, one more than its parent's for a child task."""
    published_at_ms: int | None = None
    errors: tuple[Mapping[str, Any], ...] = ()
    """Earlier failed attempts, oldest first; the format is in `wire.headers.history`."""
    owner: Owner | None = None
    claims: bytes | None = None
    """The body as sent, with blob references in place of large values; None when the body has none."""
    headers: HeaderTable | None = None
    """The headers that the submitter gives the task; None for a task that was read: its message has them."""
    traceparent: str | None = None
    tracestate: str | None = None
    baggage: str | None = None
    stream: int = 0
    """How many parts of the result may be sent before the requester gives credit; 0: the result comes as a whole."""

    @property
    def execution_key(self) -> ExecutionKey | None:
        """The key that all deliveries of one attempt share within a process; a retry or redrive has another key.

        An id that comes with another body is another task: two publishers may have chosen the same id. None without an
        id. The hash of the body is one that no other process can foresee.
        """
        if self.id is None:
            return None
        return (self.id, self.publication, self.attempt, self.redrive, self.capability, hash(self.body))
