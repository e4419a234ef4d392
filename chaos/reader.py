"""The reader that adds the final state of the ledger and the tasks' side effects to a run's history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from chaos.audit import Ledger, audit, read_ledger
from chaos.history import HistoryEntry, Note, Type
from chaos.load.work import WorkEffects
from coditect.wire.json import loads
from dispatcher.coordination import threads
from dispatcher.ledger import values, versions
from dispatcher.ledger.audit.trail import AuditEntry
from dispatcher.ledger.keyspace import AUDIT, RESTORES, THREAD_MESSAGES
from dispatcher.ledger.nodes.inputs import RESULT
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows import queries
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads


async def read_end(database: Database, entries: Iterable[HistoryEntry], effects: WorkEffects, note: Note) -> None:
    """Record in the history a run's end: states of work, an audit, decisions, threads, restores, results, effects."""
    work = {one.key: one.val for one in entries if one.f == "accept" and one.type is Type.INVOKE}
    ended = {one.key: one.val.get("state") for one in entries if one.f == "end" and one.type is Type.OK}
    ledger, wrong = await database.read(_audited)
    for key in dict.fromkeys((*work, *ledger.runs)):
        if key in ledger.runs:
            note(Type.OK, "census", key, state=ledger.runs[key].state.value, submitted=ledger.keys.get(key, ""))
        elif work[key].get("nodes"):
            note(Type.OK, "census", key, state=None)
        elif key in ended:
            note(Type.OK, "census", key, state=ended[key])
    note(Type.OK, "audit", "ledger", rows=len(ledger.runs) + sum(map(len, ledger.nodes.values())), wrong=wrong)
    for (_, workflow, _, node), entry in await database.read(_decisions):
        note(Type.OK, "decision", f"{workflow}:{node}", decision=entry.decision, by=entry.by, rule=entry.rule)
    for f, key, said in await database.read(lambda tr: [*_threads(tr), *_restores(tr)]):
        note(Type.OK, f, key, **said)
    for key in ledger.runs:
        facts = await database.read(lambda tr, key=key: _results(tr, key, ledger.nodes[key]))  # type: ignore[misc]
        for node, told in facts.items():
            note(Type.OK, "result", f"{key}:{node}", **told)
    for key, token in effects.all():
        note(Type.OK, "effect", key, token=token)


def _decisions(tr: Reads) -> list[tuple[tuple[Any, ...], AuditEntry]]:
    """Return every entry of the audit trail, with its key."""
    return [(tuple(AUDIT.unpack(key)), AuditEntry.unpack(row)) for key, row in tr.get_range(*AUDIT.range())]


def _threads(tr: Reads) -> list[tuple[str, str, dict[str, object]]]:
    """Return all messages of all message threads, and the number of the last message that each participant has read."""
    told: list[tuple[str, str, dict[str, object]]] = []
    for key, row in tr.get_range(*THREAD_MESSAGES.range()):
        thread, number = THREAD_MESSAGES.unpack(key)
        text = threads.messages(thread).unpack((key, row)).value
        told.append(("message", thread, {"number": number, "text": text}))
    for member in threads.MEMBERS.every(tr):
        told.append(("receipt", f"{member.thread}/{member.participant}", {"number": member.read}))
    return told


def _audited(tr: Reads) -> tuple[Ledger, list[str]]:
    ledger = read_ledger(tr)
    return ledger, [f"{key}: {what}" for key, what in audit(tr, ledger)]


def _restores(tr: Reads) -> list[tuple[str, str, dict[str, object]]]:
    """Return, for each restored workflow, who requested each of its restores, in the order of the restores."""
    told: dict[str, list[str]] = {}
    for key, row in tr.get_range(*RESTORES.range()):
        told.setdefault(str(RESTORES.unpack(key)[0]), []).append(str(versions.RESTORE.unpack(row)[1]))
    return [("restores", workflow, {"by": by}) for workflow, by in told.items()]


def _results(tr: Reads, workflow: str, nodes: dict[str, NodeRecord]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for node, status in nodes.items():
        facts: dict[str, object] = {"state": status.state.value, "fence": status.fence}
        body = values.get(tr, values.ValueKey(workflow, node, RESULT))
        value = None if body is None else loads(body)
        if isinstance(value, dict) and "fence" in value:
            attempts = queries.attempts(tr, {"workflow": workflow, "node": node})["attempts"]
            facts["completed"] = sum(one["status"] == "completed" for one in attempts)
            facts |= {"by": value["fence"], "maker": value["agent"], "token": value.get("token")}
        found[node] = facts
    return found
