"""The routes of dead letters: list, show, redrive and discard them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter
from pydantic import Field

from coditect.api.access.roles import Role
from coditect.api.routes.parameters import ApiRequest, Limit
from coditect.api.services import Services, needs
from coditect.errors import InputError
from coditect.operations.dead_letters import settling as dead
from coditect.operations.dead_letters.queues import DeadQueue, Selection
from coditect.operations.documents.dead import DeadNodeDocument, LetterDocument, SettledDocument, WholeLetter

router = APIRouter(prefix="/dead", tags=["dead letters"])


@dataclass(frozen=True, slots=True)
class DeadDocument:
    """The dead letters that fit a listing, the workflow nodes that were given up, and what could not be read."""

    letters: list[LetterDocument]
    nodes: list[DeadNodeDocument]
    queues: tuple[DeadQueue, ...]
    notes: list[str]


class LetterSelection(ApiRequest):
    """The choice of dead letters: those that fit every given field, or `all`."""

    ids: list[str] = Field(default_factory=list, max_length=1_000)
    capability: str | None = None
    reason: str | None = None
    agent: str | None = None
    keyword: str | None = Field(default=None, description="A text in the error or the body.")
    all: bool = Field(default=False, description="Every dead letter; needed when nothing else is said.")
    dry_run: bool = Field(default=False, description="Only say what would be done.")

    def selection(self) -> Selection:
        """Return the criteria that choose dead letters; no criteria when `all` is chosen.

        Raises:
            InputError: when the request has neither criteria nor `all`, or both.
        """
        chosen = Selection(frozenset(self.ids), self.capability, self.reason, self.agent, self.keyword)
        if (chosen == Selection()) is not self.all:
            raise InputError(
                "Say which letters are meant", fix='ids, capability, reason, agent, keyword, or "all": true'
            )
        return chosen


class Redrive(LetterSelection):
    """The choice of dead letters to publish again as fresh tasks, and whether to keep deadlines that have passed."""

    keep_limits: bool = Field(default=False, description="Keep a deadline that has passed.")


@router.get("")
async def list_dead(
    services: Services,
    capability: str | None = None,
    reason: str | None = None,
    agent: str | None = None,
    keyword: str | None = None,
    limit: Limit = 100,
) -> DeadDocument:
    """List dead letters, oldest first in each queue, and after them workflow nodes that were given up."""
    letters: list[LetterDocument] = []
    notes: list[str] = []
    listing = await dead.list_dead(
        services.opened,
        Selection(capability=capability, reason=reason, agent_id=agent, keyword=keyword),
        most=limit,
        each=lambda letter: letters.append(LetterDocument.of(letter)),
        note=notes.append,
    )
    return DeadDocument(letters, [DeadNodeDocument.of(row) for row in listing.nodes], listing.queues, notes)


@router.get("/{letter_id}")
async def show_letter(letter_id: str, services: Services, capability: str | None = None) -> WholeLetter:
    """Show one dead letter: its reason, its failed attempts and its body."""
    letter = await dead.show_letter(services.opened, letter_id, capability=capability, note=_ignored)
    return WholeLetter.of(letter)


@router.post("/redrive", dependencies=[needs(Role.OPERATOR)])
async def redrive_letters(order: Redrive, services: Services) -> SettledDocument:
    """Publish dead letters again as fresh tasks; one that cannot be stays in its queue. `dry_run` is a preview."""
    settled = await dead.redrive_letters(
        services.opened, order.selection(), dry_run=order.dry_run, keep_limits=order.keep_limits, note=_ignored
    )
    return SettledDocument.of(settled)


@router.post("/discard", dependencies=[needs(Role.OPERATOR)])
async def discard_letters(order: LetterSelection, services: Services) -> SettledDocument:
    """Delete the chosen dead letters for good; with `dry_run` only tell which."""
    settled = await dead.discard_letters(services.opened, order.selection(), dry_run=order.dry_run, note=_ignored)
    return SettledDocument.of(settled)


def _ignored(note: str) -> None:
    """Ignore a note that some dead letters' queues could not be found; the answer shows the letters of the others."""
