"""The documents of dead letters: one as a row, one in full, and what a redrive or discard did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coditect.operations.dead_letters.letter import DeadLetter
from coditect.operations.dead_letters.queues import SettledLetter
from coditect.operations.documents.fleet import instant_text
from coditect.workflow.rows import DeadRow

LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True)
class LetterDocument:
    """A dead letter as a row of a listing."""

    id: str | None
    capability: str
    priority: str
    reason: str
    agent: str | None
    attempts: int
    redrives: int
    dead_at: str | None
    error: str | None
    queue: str
    body_bytes: int

    @classmethod
    def of(cls, letter: DeadLetter) -> LetterDocument:
        """Convert a dead letter to a row for answers of the command line and the HTTP API."""
        error = letter.error
        return cls(
            letter.id,
            letter.capability,
            letter.priority.value,
            letter.reason,
            letter.agent_id,
            letter.attempts,
            letter.redrives,
            None if letter.dead_at_ms is None else instant_text(letter.dead_at_ms),
            f"{error.type}: {error.message}"[:LONGEST_ERROR] if error else None,
            letter.queue,
            len(letter.body),
        )


@dataclass(frozen=True, slots=True)
class WholeLetter:
    """A dead letter with its failed attempts and its body."""

    letter: LetterDocument
    failure: dict[str, Any] | None
    """Why the last attempt failed, with its traceback."""
    errors: tuple[dict[str, Any], ...]
    """The earlier failed attempts, oldest first."""
    body: str
    """The task's body as text; bytes that are no UTF-8 are replaced."""

    @classmethod
    def of(cls, letter: DeadLetter) -> WholeLetter:
        """Convert a dead letter, in full, to a document for answers of the command line and the HTTP API."""
        failure = letter.error.as_json() if letter.error else None
        errors = tuple(dict(one) for one in letter.errors)
        return cls(LetterDocument.of(letter), failure, errors, letter.body.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class DeadNodeDocument:
    """A workflow node that was given up."""

    workflow: str
    node: str
    capability: str
    priority: str
    reason: str
    agent: str
    attempts: int
    dead_at: str | None
    error: str | None

    @classmethod
    def of(cls, row: DeadRow) -> DeadNodeDocument:
        """Convert a workflow node that was given up to a row for answers of the command line and the HTTP API."""
        node = row.node
        dead_at = None if node.finished_at_ms is None else instant_text(node.finished_at_ms)
        told = node.message[:LONGEST_ERROR] or None
        return cls(
            row.workflow,
            node.name,
            node.capability,
            node.priority,
            node.reason,
            node.agent,
            node.attempt,
            dead_at,
            told,
        )


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """A dead letter that stayed in its queue, and why."""

    id: str | None
    queue: str
    why: str


@dataclass(frozen=True, slots=True)
class SettledDocument:
    """The outcome of a redrive or discard of dead letters, or of its dry run, for the command line and the API."""

    count: int
    ids: tuple[str, ...]
    kept: tuple[KeptDocument, ...]
    stopped: str | None
    """Why the run ended early; it can be repeated."""
    dry_run: bool

    @classmethod
    def of(cls, settled: SettledLetter) -> SettledDocument:
        """Convert the result of a redrive or discard to plain values for the command line and the HTTP API."""
        kept = tuple(KeptDocument(one.id, one.queue, one.error.sentence) for one in settled.kept)
        stopped = None if settled.stopped is None else settled.stopped.sentence
        return cls(settled.count, settled.ids, kept, stopped, settled.dry_run)
