"""The listings of the control plane page by page, each page with the cursor of the next, as the HTTP API gives them."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from coditect.client.approvals import AuditRow
from coditect.errors import InputError, InvalidTask
from coditect.messaging.control_plane import ControlPlane, rows_of
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.workflow import fields
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import ApprovalRow, NodeRow, WorkflowRow
from coditect.workflow.starters import Schedule, Trigger
from coditect.workflow.states import WorkflowState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A kind of listing by the control plane: its request, the answer's field with the rows, and a row's parser."""

    verb: Verb
    field: str
    read: Callable[[object], T]


WORKFLOW_PAGES = Listing(Verb.LIST, "workflows", WorkflowRow.read)
NODE_PAGES = Listing(Verb.NODES, "nodes", NodeRow.read)
ATTEMPT_PAGES = Listing(Verb.ATTEMPTS, "attempts", AttemptRow.read)
APPROVAL_PAGES = Listing(Verb.APPROVALS, "approvals", ApprovalRow.read)
AUDIT_PAGES = Listing(Verb.AUDIT_LIST, "entries", AuditRow.read)
SCHEDULE_PAGES = Listing(Verb.SCHEDULE_LIST, "schedules", Schedule.read)
TRIGGER_PAGES = Listing(Verb.TRIGGER_LIST, "triggers", Trigger.read)


@dataclass(frozen=True, slots=True)
class ListingPage(Generic[T]):
    """A page of a listing: some of its items, and the cursor by which the next page is asked for."""

    items: list[T]
    next: str | None
    """The cursor of the next page; None on the last."""


async def read_page(
    control: ControlPlane, listing: Listing[T], asked: Mapping[str, Any], *, cursor: str | None, limit: int
) -> ListingPage[T]:
    """Ask the control plane for one page of a listing, and return the page; without a cursor, the first one.

    Raises:
        InputError: when the cursor is none of this listing.
        CoditectError: the errors of `ControlPlane.ask`.
    """
    after = None if cursor is None else _after(cursor)
    answer = await control.ask(listing.verb, {**asked, "after": after, "limit": limit})
    following = answer.get("next")
    rows = [listing.read(row) for row in rows_of(answer, listing.field)]
    return ListingPage(rows, None if following is None else urlsafe_b64encode(dumps(following)).decode().rstrip("="))


def _after(cursor: str) -> object:
    try:
        return loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, InvalidTask) as error:
        fix = "give the `next` of the page before as it is, or none for the first page"
        raise InputError("This is no cursor of a listing", cursor=cursor[:80], fix=fix) from error


def workflow_conditions(
    *,
    state: WorkflowState | None = None,
    name: str | None = None,
    since: str | datetime | None = None,
    until: str | datetime | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the filters of `Workflows.list` as the fields of a request to the control plane.

    Raises:
        InputError: when `since` or `until` is no instant with its offset from UTC, or a label is wrong.
    """
    asked: dict[str, Any] = {} if state is None else {"state": state.value}
    asked |= {} if name is None else {"name": name}
    asked |= {"labels": fields.labels(labels)} if labels else {}
    for bound, instant in (("since", since), ("until", until)):
        if instant is not None:
            asked[bound] = fields.instant_ms(fields.instant(instant))
    return asked
