"""The rows of the audit trail and of decisions about nodes, as the control plane answers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from coditect.errors import InvalidTask


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry of the audit trail: what was decided about a node, when, by whom, and why."""

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
        try:
            given: Any = row
            return cls(
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
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask(
                "An entry of the audit trail is not what it should be", reason=repr(error)[:200]
            ) from error


@dataclass(frozen=True, slots=True)
class ApprovalDecision:
    """What was asked and decided about a node, with its whole history."""

    workflow: str
    node: str
    decision: Mapping[str, Any]
    """The last decision: `decision`, `by`, `why`, `rule`, `risk`, `question`, `due_ms` and others."""
    history: tuple[AuditRow, ...]
    """The node's entries in the audit trail, the earliest first."""
