"""The report of an attempt to run a node, as the ledger keeps it and the control plane answers it."""

from __future__ import annotations

from dataclasses import dataclass

from coditect.model.row import Row


@dataclass(frozen=True, slots=True)
class AttemptRow(Row):
    """The report of one attempt to run a node: its agent, its times, and its state or outcome, without the value."""

    node: str
    attempt: int
    fence: int
    publication: int
    agent: str
    published_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    status: str
    """The attempt's state: published, working, completed, failed, canceled, rejected, or lost (no end was reported)."""
    reason: str = ""
    message: str = ""
