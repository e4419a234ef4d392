"""The request that sends a signal to a workflow, from a client, the command line or an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.errors import InputError, InvalidTask
from coditect.wire.json import dumps
from coditect.workflow import fields
from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import SIGNALS
from dispatcher.ledger.nodes import advance, waits
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.control import MOST_NAME, run_of
from dispatcher.ledger.workflows.submit import text


def signal(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    """Give a signal to the node that waits for it, or keep it until a node does; a repeated signal id changes nothing.

    Raises:
        InputError: when the workflow has ended or keeps too many signals, or (NotFound) there is none.
        ValueBeyondBound: when the signal's value is too large.
    """
    workflow, identity = text(body, "workflow"), text(body, "id")
    name = fields.signal(body.get("signal"))
    if len(identity) > MOST_NAME:
        raise InvalidTask("The id of a signal is too long", field="id", most_characters=MOST_NAME)
    run = run_of(unit, workflow)
    if unit.tr.get(SIGNALS.pack((workflow, identity))) is not None:
        return {"workflow": workflow, "signal": name, "state": "known", "new": False}
    if advance.is_over(run):
        fix = "send it before the workflow ends: coditect workflow get"
        raise InputError("The workflow takes no more signals", workflow=workflow, state=run.state.value, fix=fix)
    node_key = waits.receive(unit, workflow, name, identity, dumps(body.get("value")))
    if node_key is None:
        return {"workflow": workflow, "signal": name, "state": "kept", "new": True}
    _complete(unit, node_key)
    return {"workflow": workflow, "signal": name, "state": "taken", "node": node_key.node, "new": True}


def _complete(unit: UnitOfWork, node_key: NodeKey) -> None:
    row = unit.node(node_key)
    assert row is not None
    advance.end(unit, node_key, row, TaskState.COMPLETED)
