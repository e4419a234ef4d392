"""The approvals that wait for a person, what was decided about them, and the audit trail of all decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coditect.errors import InputError
from coditect.messaging.control_plane import ControlPlane, pages, rows_of
from coditect.model.row import Row, read_row
from coditect.wire.control import Verb
from coditect.workflow.approvals.signing import signature
from coditect.workflow.rows import ApprovalRow


@dataclass(frozen=True, slots=True)
class AuditRow(Row):
    """An entry of the audit trail: what was asked, decided or ordered about a node or workflow, when, by whom, why."""

    at_ms: int
    workflow: str
    node: str
    """The node; empty for an order about the whole workflow."""
    decision: str
    """`asked`, `granted`, `denied` or `refused`, or what a person ordered."""
    by: str
    """The person; or `policy`, `learned` or `timeout`."""
    automatic: bool
    why: str
    capability: str
    rule: str
    risk: str
    policy: str
    """The digest of the policy that decided; empty without one."""
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FinishedCounts:
    """The numbers of workflows or tasks that finished in a period: all, completed ones, and those a person acted on."""

    finished: int
    completed: int
    by_hand: int

    @property
    def autonomy(self) -> float | None:
        """The share of the finished workflows or tasks that no person acted on, 0 to 1; None when nothing finished."""
        return None if not self.finished else 1 - self.by_hand / self.finished


@dataclass(frozen=True, slots=True)
class NeededPerson:
    """A kind of work that needed a person's answer or order: how often, and the latest case."""

    decision: str
    """`asked`, `granted`, `denied`, `redriven`, `resumed` or `restored`."""
    capability: str
    rule: str
    count: int
    workflow: str
    node: str
    by: str
    why: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class AutonomyReport:
    """Finished work of a period: workflows and tasks, how many a person acted on, and what needed a person."""

    since_ms: int
    until_ms: int
    workflows: FinishedCounts
    """The workflows that were started; durable tasks are among them, and sub-workflows are not."""
    capabilities: Mapping[str, FinishedCounts]
    """The tasks of workflows, by capability."""
    needed: tuple[NeededPerson, ...]
    needed_is_whole: bool
    """Whether `needed` counts the whole period, and not only the latest 5,000 entries of the audit trail."""


@dataclass(frozen=True, slots=True)
class ApprovalDecision:
    """The last question or decision about a node that needed approval, with the node's entries in the audit trail."""

    workflow: str
    node: str
    decision: Mapping[str, Any]
    """The last decision: `decision`, `by`, `why`, `rule`, `risk`, `question`, `due_ms` and others."""
    history: tuple[AuditRow, ...]
    """The node's entries in the audit trail, the earliest first."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is approved: `labels` and `workflow_input` of the workflow, `input` of the task, `results` of the nodes
    before it, by name."""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """The conditions of a listing of the audit trail; every one that is set must hold."""

    workflow: str | None = None
    node: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    decision: str | None = None
    by: str | None = None
    automatic: bool | None = None
    capability: str | None = None
    rule: str | None = None
    risk: str | None = None

    def asked(self) -> dict[str, object]:
        """Return the conditions that are set, as fields of a request to the control plane."""
        conditions = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        return {name.removesuffix("_ms"): value for name, value in conditions.items()}


class Approvals:
    """The questions that wait for a person's answer, and the audit trail; the id of an approval is `workflow:node`."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def list(self, *, limit: int | None = None) -> AsyncIterator[ApprovalRow]:
        """Yield the approvals that wait: approval nodes, and tasks that the approval policy asks about."""
        async for row in pages(self._control, Verb.APPROVALS, "approvals", {}, limit=limit):
            yield ApprovalRow.read(row)

    async def get(self, approval: str) -> ApprovalDecision:
        """Return what was last asked or decided about a node, with the node's history in the audit trail.

        Raises:
            NotFound: when nothing was ever asked or decided about the node.
        """
        workflow, node = approval_place(approval)
        answer = await self._control.ask(Verb.APPROVAL_SHOW, {"workflow": workflow, "node": node})
        history = tuple(AuditRow.read(row) for row in rows_of(answer, "history"))
        decision, about = dict(answer.get("decision") or {}), dict(answer.get("about") or {})
        return ApprovalDecision(workflow, node, decision, history, about)

    async def grant(self, approval: str, *, by: str, comment: str = "", key: str | None = None) -> None:
        """Grant an approval; the person `by` is recorded, a `key` signs the answer, and only the first answer counts.

        Raises:
            InvalidTask: when `by` is empty.
            NotFound: when the node is no approval that waits.
        """
        await self._answer(approval, key, granted=True, by=by, comment=comment)

    async def deny(self, approval: str, *, by: str, comment: str = "", key: str | None = None) -> None:
        """Deny an approval, with the parameters and the errors of `grant`."""
        await self._answer(approval, key, granted=False, by=by, comment=comment)

    async def _answer(self, approval: str, key: str | None, **answer: Any) -> None:
        workflow, node = approval_place(approval)
        answer |= {"workflow": workflow, "node": node}
        if key is not None:  # the signature also covers when the question was asked
            shown = await self._control.ask(Verb.APPROVAL_SHOW, {"workflow": workflow, "node": node})
            asked_ms = int((shown.get("decision") or {}).get("at_ms") or 0)
            answer["signature"] = signature(key, answer, asked_ms=asked_ms)
        await self._control.ask(Verb.ANSWER, answer)

    async def audit(self, /, *, limit: int | None = None, **conditions: Any) -> AsyncIterator[AuditRow]:
        """Yield the entries of the audit trail, the latest first; of one `workflow`, the earliest first.

        Conditions: `workflow`, `node`, `since` and `until` (milliseconds since the epoch), `decision`, `by`,
        `automatic`, `capability`, `rule`, `risk`.
        """
        async for row in pages(self._control, Verb.AUDIT_LIST, "entries", conditions, limit=limit):
            yield AuditRow.read(row)

    async def autonomy(self, *, since_ms: int, until_ms: int) -> AutonomyReport:
        """Report how much work that finished in a period needed no person; the first and last hour count whole."""
        answer = await self._control.ask(Verb.AUTONOMY, {"since": since_ms, "until": until_ms})
        return read_row(AutonomyReport, answer | {"since_ms": since_ms, "until_ms": until_ms})


def approval_place(approval: str) -> tuple[str, str]:
    """Return the workflow and the node of an approval's id, `workflow:node`.

    Raises:
        InputError: when the text is no such id.
    """
    workflow, colon, node = approval.partition(":")
    if not (workflow and colon and node):
        fix = "the id of `coditect approval list`: the workflow's id, a colon and the node"
        raise InputError("This is no id of an approval", given=approval[:120], fix=fix)
    return workflow, node
