"""The entries of the audit trail and the decisions about nodes, parsed from answers of the control plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from coditect.client.control_plane import ControlPlane
from coditect.errors import InvalidTask
from coditect.wire.control import Verb
from coditect.workflow.approvals.signing import signature
from coditect.workflow.rows import read_row


async def signed(control: ControlPlane, answer: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a person's answer to an approval with its signature, which also covers when the question was asked.

    The control plane is asked for that time first.

    Raises:
        NotFound: when nothing was asked about the node.
    """
    told = await control.ask(Verb.APPROVAL_SHOW, {"workflow": answer["workflow"], "node": answer["node"]})
    asked_ms = int((told.get("decision") or {}).get("at_ms") or 0)
    return answer | {"signature": signature(key, answer, asked_ms=asked_ms)}


@dataclass(frozen=True, slots=True)
class AuditRow:
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

    @classmethod
    def read(cls, row: object) -> Self:
        """Parse an entry from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        return read_row(row, lambda given: cls(
            int(given["at_ms"]),
            str(given["workflow"]),
            str(given["node"]),
            str(given["decision"]),
            str(given["by"]),
            given["automatic"] is True,
            str(given["why"]),
            str(given["capability"]),
            str(given["rule"]),
            str(given["risk"]),
            str(given["policy"]),
            dict(given["facts"]),
        ))  # fmt: skip


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

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, since_ms: int, until_ms: int) -> Self:
        """Parse the report from an answer of the control plane.

        Raises:
            InvalidTask: when the answer has another form.
        """
        try:
            tasks = {name: FinishedCounts(**found) for name, found in answer["capabilities"].items()}
            needed, whole = tuple(NeededPerson(**one) for one in answer["needed"]), answer["needed_is_whole"] is True
            return cls(since_ms, until_ms, FinishedCounts(**answer["workflows"]), tasks, needed, whole)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidTask("The report of autonomy is not what it should be", reason=repr(error)[:200]) from error


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
