"""Attempts: how those that are over are kept for the history."""

from __future__ import annotations

from coditect.model.result import Failure
from coditect.model.workflow.states import TaskState
from dispatcher.layers.keyspace import ATTEMPTS
from dispatcher.layers.ledger.book import Book
from dispatcher.layers.ledger.effects import Place
from dispatcher.layers.ledger.rows import AttemptRow, NodeRow

UNDER_WAY = (TaskState.PUBLISHED, TaskState.WORKING)
MOST_MESSAGE = 2_000
"""Characters of an error that the history keeps; the whole failure is kept of the last attempt."""
DIED = Failure("process_died", "AgentLost", "The agent was gone before the attempt ended", retryable=True)
BROKER_LOST = Failure("broker_lost", "BrokerLost", "The broker lost its data while the attempt was under way")


def write_attempt(book: Book, place: Place, row: NodeRow, status: str, failure: Failure | None) -> None:
    """Keeps an attempt that another will follow, for the history."""
    attempt = AttemptRow(
        row.attempt,
        row.fence,
        row.publication,
        row.agent,
        row.published_ms,
        row.started_ms,
        book.now_ms,
        status,
        failure.reason if failure else "",
        failure.message[:MOST_MESSAGE] if failure else "",
    )
    book.tr.set(ATTEMPTS.pack((place.workflow, place.node, attempt.fence)), attempt.pack())
