"""A task: one piece of work for whoever has the capability, with its limits and its owner.

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
from coditect.model.ids import TaskId
from coditect.model.value import value

ExecutionKey = tuple[str, int, int, int, str, int]
DEFAULT_MAX_ATTEMPTS = 3
MAX_DEPTH = 64
"""Deepest nesting of requests; a fleet that asks itself in a circle ends here."""


@value
class Limits:
    """The bounds of a task, in milliseconds since the epoch where they are instants; None is no bound."""

    deadline_ms: int | None = None
    """After it nobody wants the result: not started any more, and cut short when it runs."""
    start_by_ms: int | None = None
    """After it the task is not started any more."""
    timeout_ms: int | None = None
    """Longest run of one attempt; the capability's own timeout when None, and never longer."""
    max_attempts: int | None = None
    """Attempts in all; the capability's own when None, and never more."""


NO_LIMITS = Limits()


@value
class Owner:
    """Who decides about a failure, when it is not the agent: a workflow's node at its dispatcher."""

    workflow: str
    node: str
    origin: str
    """The shard whose dispatcher records the outcome."""
    fence: int


@value
class Task:
    """One piece of work as an agent sees it. The body is its input and nothing else."""

    capability: str
    priority: Priority
    body: bytes
    id: TaskId | None = None
    """None for a foreign publisher that gave no `message_id`: no duplicate is recognised then."""
    correlation_id: str | None = None
    reply_to: str | None = None
    limits: Limits = NO_LIMITS
    attempt: int = 1
    publication: int = 0
    redrive: int = 0
    """How often it was brought back from the dead letters."""
    depth: int = 0
    """How many tasks await it, one through the other: 0 for a client's, one more than its parent's for a child's."""
    published_at_ms: int | None = None
    errors: tuple[Mapping[str, Any], ...] = ()
    """Earlier failed attempts, oldest first; see `model.history`."""
    owner: Owner | None = None
    claims: bytes | None = None
    """The body as it travels, where claims stand in it for large values; until they were fetched, it is the body."""
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def execution_key(self) -> ExecutionKey | None:
        """What two deliveries of the same execution share; a retry or redrive is another execution.

        An id that comes with another question is another task: two publishers may have chosen the same. Only of use in
        this process: the hash is one that nobody outside can foresee.
        """
        if self.id is None:
            return None
        return (self.id, self.publication, self.attempt, self.redrive, self.capability, hash(self.body))
