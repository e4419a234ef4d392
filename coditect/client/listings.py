"""The part of a client that lists agents, and page by page workflows, open approvals and dead nodes."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from coditect.client.control_plane import ControlPlane, pages, rows_of
from coditect.client.coordination.audit import ApprovalDecision, AuditRow, AutonomyReport
from coditect.client.coordination.schedules import ScheduleRow
from coditect.client.coordination.triggers import TriggerRow
from coditect.errors import InputError, InvalidTask, SetupError
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry, Search
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.workflow import fields
from coditect.workflow.rows import ApprovalRow, AttemptRow, DeadRow, NodeRow, WorkflowRow
from coditect.workflow.states import WorkflowState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A kind of listing by the control plane: its request, the answer's field with the rows, and a row's parser."""

    verb: Verb
    field: str
    read: Callable[[object], T]


WORKFLOWS = Listing(Verb.LIST, "workflows", WorkflowRow.read)
NODES = Listing(Verb.NODES, "nodes", NodeRow.read)
ATTEMPTS = Listing(Verb.ATTEMPTS, "attempts", AttemptRow.read)
APPROVALS = Listing(Verb.APPROVALS, "approvals", ApprovalRow.read)
AUDIT = Listing(Verb.AUDIT_LIST, "entries", AuditRow.read)
SCHEDULES = Listing(Verb.SCHEDULE_LIST, "schedules", ScheduleRow.read)
TRIGGERS = Listing(Verb.TRIGGER_LIST, "triggers", TriggerRow.read)


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


class ClientListings:
    """The methods of `Client` that list agents, workflows, approvals, the audit trail and dead nodes."""

    _control: ControlPlane
    _registry: Registry | None

    async def agents(self, capability: str | None = None) -> tuple[AgentRecord, ...]:
        """Return the living agents, or those of them that offer a capability, sorted by id.

        Raises:
            SetupError: for a client without a registry.
            RegistryUnavailable: when the registry does not answer; retryable.
        """
        if self._registry is None:
            raise SetupError(
                "This client knows no registry of agents", fix="Client.from_env(), or Client(broker, registry)"
            )
        return await self._registry.find(Search(capability))

    async def runs(
        self,
        *,
        state: WorkflowState | None = None,
        name: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        labels: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> AsyncIterator[WorkflowRow]:
        """Yield the workflows that the control plane has, the latest first; only those that fit all given conditions.

        `labels` are those that a workflow must have, all of them: `{"team": "x"}`.
        `since` and `until` are instants with their offset from UTC: of the start, or of the tick of a schedule.

        Raises:
            InputError: when `since` or `until` is no such instant, or a label is wrong.
        """
        asked = run_conditions(state=state, name=name, since=since, until=until, labels=labels)
        async for row in pages(self._control, Verb.LIST, "workflows", asked, most=most):
            yield WorkflowRow.read(row)

    async def page(
        self, listing: Listing[T], asked: Mapping[str, Any], *, cursor: str | None = None, limit: int = 100
    ) -> ListingPage[T]:
        """Return one page of a listing, such as WORKFLOWS; `asked` holds the filters, as fields of the request.

        Raises:
            InputError: when the cursor is none of this listing.
        """
        return await read_page(self._control, listing, asked, cursor=cursor, limit=limit)

    async def approvals(self, *, most: int | None = None) -> AsyncIterator[ApprovalRow]:
        """Yield the approvals that wait for an answer; `run(row.workflow).answer(row.node, ...)` answers one."""
        async for row in pages(self._control, Verb.APPROVALS, "approvals", {}, most=most):
            yield ApprovalRow.read(row)

    async def decision(self, workflow: str, node: str) -> ApprovalDecision:
        """Return what was last asked or decided about a node, with the node's history in the audit trail.

        Raises:
            NotFound: when nothing was ever asked or decided about the node.
        """
        answer = await self._control.ask(Verb.APPROVAL_SHOW, {"workflow": workflow, "node": node})
        history = tuple(AuditRow.read(row) for row in rows_of(answer, "history"))
        return ApprovalDecision(
            workflow, node, dict(answer.get("decision") or {}), history, dict(answer.get("about") or {})
        )

    async def audit(self, /, *, most: int | None = None, **asked: Any) -> AsyncIterator[AuditRow]:
        """Yield the entries of the audit trail, the latest first; of one `workflow`, the earliest first.

        Conditions: `workflow`, `node`, `since` and `until` (milliseconds since the epoch), `decision`, `by`,
        `automatic`, `capability`, `rule`, `risk`.
        """
        async for row in pages(self._control, Verb.AUDIT_LIST, "entries", asked, most=most):
            yield AuditRow.read(row)

    async def autonomy(self, *, since_ms: int, until_ms: int) -> AutonomyReport:
        """Report how much work that finished in a period needed no person; the first and last hour count whole."""
        answer = await self._control.ask(Verb.AUTONOMY, {"since": since_ms, "until": until_ms})
        return AutonomyReport.read(answer, since_ms=since_ms, until_ms=until_ms)

    async def dead_nodes(self, *, most: int | None = None) -> AsyncIterator[DeadRow]:
        """Yield the workflow nodes given up because the last attempt's agent died, or its end could not be recorded.

        `run(row.workflow).redrive(row.node.name)` runs a node again.
        """
        async for row in pages(self._control, Verb.DEAD, "dead", {}, most=most):
            yield DeadRow.read(row)


def run_conditions(
    *,
    state: WorkflowState | None = None,
    name: str | None = None,
    since: str | datetime | None = None,
    until: str | datetime | None = None,
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the filters of `ClientListings.runs` as the fields of a request to the control plane.

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
