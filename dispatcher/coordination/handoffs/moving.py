"""The move of a task to the agent that accepted it: its attempt, its fence, its locks, and its publication."""

from __future__ import annotations

from coditect.model.result import Failure
from dispatcher.coordination import locks
from dispatcher.coordination.handoffs.rows import HandoffRecord
from dispatcher.ledger.keyspace import FLIGHTS
from dispatcher.ledger.nodes import claim, limits
from dispatcher.ledger.nodes.approvals import judging
from dispatcher.ledger.nodes.attempts import write_attempt
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.unit_of_work import UnitOfWork

HANDED_OFF = "handed_off"
"""The status, and the reason, of an attempt at whose end another agent took the task over."""


def move(unit: UnitOfWork, row: NodeRecord, handoff: HandoffRecord, agent: str) -> None:
    """End the owner's attempt, and publish the task to the agent that accepted it, if the approval policy lets it go.

    It gets a new fence; the number of the attempt stays, since none has failed. Held locks go with the task. A task
    that is handed to another capability is judged by the approval policy as if it were new.
    """
    node_key = handoff.node_key
    message = f"to {agent}" + (f": {handoff.reason}" if handoff.reason else "")
    write_attempt(unit, node_key, row, HANDED_OFF, Failure(HANDED_OFF, "HandedOff", message))
    limits.told(unit, node_key, row)
    locks.hand_over(unit, node_key.task_id, handoff.owner, agent)
    unit.tr.clear(FLIGHTS.pack((unit.shard, *node_key)))
    row.handoffs += 1
    row.capability = "" if _is_own(unit, handoff) else handoff.capability
    call = unit.call(node_key)
    assert call is not None, "only a task is handed off"
    if judging.may_go(unit, node_key, row, call):
        claim.publish(unit, node_key, row, agent=agent)
    else:
        unit.advance_fence(row)  # what the former owner may still tell is late


def _is_own(unit: UnitOfWork, handoff: HandoffRecord) -> bool:
    call = unit.definition(handoff.node_key).call
    return call is not None and call.capability == handoff.capability
