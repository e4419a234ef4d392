"""The entries of the audit trail, and how they are appended, read page by page, and removed when they are too old.

Nothing changes an entry. The trail outlives its workflows: retention removes an entry by its own age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import AUDIT, AUDIT_OF
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.store.transaction import Reads, Transaction

MAX_AUDIT_ENTRIES = 500
MOST_REMOVED = 1_000


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An entry of the audit trail: what was asked, decided or ordered about a node or workflow, by whom, and why."""

    decision: str
    """`asked`, `granted`, `denied` or `refused`, or a person's order: `redriven`, `resumed`, `canceled`, `restored`."""
    by: str
    """The person; or `policy`, `learned`, `gate` or `timeout` for an automatic decision; empty for a question."""
    automatic: bool
    why: str = ""
    capability: str = ""
    rule: str = ""
    risk: str = ""
    policy: str = ""
    """The digest of the policy that decided; empty without one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further facts of the decision, such as the artifacts of a gate, or the arithmetic of a learned approval."""

    def pack(self) -> bytes:
        """Encode the audit entry as its row in the store."""
        fields = [self.decision, self.by, self.automatic, self.why, self.capability, self.rule, self.risk, self.policy]
        return versions.AUDIT_ENTRY.pack([*fields, dict(self.facts)])

    @classmethod
    def unpack(cls, row: bytes) -> AuditEntry:
        """Decode a row of the store to an audit entry."""
        return cls(*versions.AUDIT_ENTRY.unpack(row))


def append(unit: UnitOfWork, node_key: NodeKey, entry: AuditEntry) -> None:
    """Add an entry to the audit trail: about a node, or about a whole workflow if the key names the node ""."""
    workflow, node = node_key
    last = unit.tr.get_range(*AUDIT_OF.range((workflow, unit.now_ms)), limit=1, reverse=True)
    number = 1 + (int(AUDIT_OF.unpack(last[0][0])[2]) if last else 0)
    unit.tr.set(AUDIT.pack((unit.now_ms, workflow, number, node)), entry.pack())
    unit.tr.set(AUDIT_OF.pack((workflow, unit.now_ms, number, node)), b"")


def page(
    tr: Reads, *, since_ms: int, until_ms: int, after: tuple[Any, ...] | None, limit: int
) -> tuple[list[tuple[tuple[Any, ...], AuditEntry]], tuple[Any, ...] | None]:
    """Return a page of a period's audit entries, the latest first, with keys, and the next page's cursor if any."""
    begin, end = AUDIT.pack((since_ms,)), AUDIT.pack((until_ms,)) if after is None else AUDIT.pack(after)
    rows = tr.get_range(begin, end, limit=limit, reverse=True) if begin < end else []
    found = [(tuple(AUDIT.unpack(key)), AuditEntry.unpack(row)) for key, row in rows]
    return found, found[-1][0] if len(found) == limit else None


def of_workflow(tr: Reads, workflow: str, node: str = "") -> list[tuple[tuple[Any, ...], AuditEntry]]:
    """Return a workflow's latest 500 audit entries with keys, earliest first; with `node`, those of them about it."""
    rows = tr.get_range(*AUDIT_OF.range((workflow,)), limit=MAX_AUDIT_ENTRIES, reverse=True)
    places = [AUDIT_OF.unpack(key) for key, _ in reversed(rows)]
    keys = [
        (at_ms, workflow, number, entry_node)
        for _, at_ms, number, entry_node in places
        if not node or entry_node == node
    ]
    entries = tr.get_many([AUDIT.pack(key) for key in keys])
    return [(key, AuditEntry.unpack(row)) for key, row in zip(keys, entries, strict=True) if row is not None]


def sweep(tr: Transaction, *, before_ms: int, limit: int = MOST_REMOVED) -> int:
    """Remove at most `limit` audit entries older than an instant, the oldest first; return how many were removed."""
    rows = tr.snapshot.get_range(AUDIT.range()[0], AUDIT.pack((before_ms,)), limit=limit)
    for key, _ in rows:
        at_ms, workflow, number, node = AUDIT.unpack(key)
        tr.clear(key)
        tr.clear(AUDIT_OF.pack((workflow, at_ms, number, node)))
    return len(rows)
