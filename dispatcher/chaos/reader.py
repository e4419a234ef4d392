"""What is there at the end of a run, read from the ledger and from the agents' effects, as lines of its history."""

from __future__ import annotations

from collections.abc import Iterable

from coditect.model.json import loads
from dispatcher import queries
from dispatcher.chaos.work import Effects
from dispatcher.layers import values
from dispatcher.layers.keyspace import RUNS, STATUSES
from dispatcher.layers.ledger.rows import NodeRow, RunRow
from dispatcher.layers.ledger.scope import RESULT
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads
from dispatcher.witness.history import Entry, Note, Type


async def read_end(database: Database, entries: Iterable[Entry], effects: Effects, note: Note) -> None:
    """Notes the census of all work, what the ledger holds of every node, and every effect."""
    work = {one.key: one.val for one in entries if one.f == "accept" and one.type is Type.INVOKE}
    ended = {one.key: one.val.get("state") for one in entries if one.f == "end" and one.type is Type.OK}
    for key, val in work.items():
        if not val.get("nodes"):
            if key in ended:
                note(Type.OK, "census", key, state=ended[key])
            continue
        run = await database.read(lambda tr, key=key: tr.get(RUNS.pack((key,))))  # type: ignore[misc]
        note(Type.OK, "census", key, state=None if run is None else RunRow.unpack(run).state.value)
        for node, facts in (await database.read(lambda tr, key=key: _nodes(tr, key))).items():  # type: ignore[misc]
            note(Type.OK, "result", f"{key}:{node}", **facts)
    for key, token in effects.all():
        note(Type.OK, "effect", key, token=token)


def _nodes(tr: Reads, workflow: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for key, row in tr.get_range(*STATUSES.range((workflow,))):
        node = STATUSES.unpack(key)[1]
        status = NodeRow.unpack(row)
        facts: dict[str, object] = {"state": status.state.value, "fence": status.fence}
        body = values.get(tr, values.Place(workflow, node, RESULT))
        value = None if body is None else loads(body)
        if isinstance(value, dict) and "token" in value:
            attempts = queries.attempts(tr, {"workflow": workflow, "node": node})["attempts"]
            facts["completed"] = sum(one["status"] == "completed" for one in attempts)
            facts |= {"by": value["fence"], "maker": value["agent"], "token": value["token"]}
        found[node] = facts
    return found
