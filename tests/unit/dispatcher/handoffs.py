"""The parties of one task that changes hands: the test asks and answers for them, request by request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coditect.model.ids import AgentId
from coditect.model.result import Outcome
from coditect.wire import control_messages
from coditect.wire.control import Verb
from coditect.wire.json import loads
from dispatcher.coordination.handoffs import rows
from dispatcher.ledger.effects import Effects, NodeKey
from dispatcher.ledger.keyspace import HANDOFFS
from tests.unit.dispatcher.lone_ledger import Ledger, completed

OWNER = "owner-00000001"
OTHERS = ("able-00000002", "bold-00000003", "calm-00000004")


async def ask_others(ledger: Ledger, *, fence: int = 1, ticket: str = "t1", **more: Any) -> dict[str, Any]:
    """The owner offers the node `one` to the others."""
    body = {
        "workflow": "w",
        "node": "one",
        "fence": fence,
        "agent": OWNER,
        "to": "work.other",
        "capability": "work.other",
        "candidates": list(OTHERS),
        "reason": "not mine",
        "context": {"seen": 3},
        "timeout_ms": 60_000,
        "ticket": ticket,
        "reply_to": f"reply.{OWNER}",
    }
    answer: dict[str, Any] = await ledger.ask(Verb.HANDOFF_REQUEST, body | more)
    return answer


async def accept(ledger: Ledger, handoff: str, agent: str = OTHERS[0]) -> dict[str, Any]:
    answer: dict[str, Any] = await ledger.ask(Verb.HANDOFF_ACCEPT, {"handoff": handoff, "agent": agent})
    return answer


async def decline(ledger: Ledger, handoff: str, agent: str, reason: str = "no") -> dict[str, Any]:
    answer: dict[str, Any] = await ledger.ask(
        Verb.HANDOFF_DECLINE, {"handoff": handoff, "agent": agent, "reason": reason}
    )
    return answer


async def withdraw(ledger: Ledger, handoff: str) -> dict[str, Any]:
    answer: dict[str, Any] = await ledger.ask(Verb.HANDOFF_WITHDRAW, {"handoff": handoff, "by": "ada", "reason": "why"})
    return answer


def offers(effects: Effects) -> list[tuple[str, dict[str, Any]]]:
    """The agents to which a transaction offers a task, each with the offer."""
    return [
        (out.routing_key.removeprefix("mail."), loads(out.message.body))
        for out in effects.messages
        if out.message.type == control_messages.HANDOFF
    ]


def offered(ledger: Ledger) -> list[str]:
    """The agents that were asked, in order."""
    return [agent for effects in ledger.seen for agent, _ in offers(effects)]


def said(ledger: Ledger) -> list[str]:
    """The events of handoffs, in order."""
    kinds = [notice.type for effects in ledger.seen for notice in effects.notices]
    return [kind.removeprefix("agent.handoff.") for kind in kinds if kind.startswith("agent.handoff.")]


def news(ledger: Ledger) -> list[str]:
    """What the owner was told, by push."""
    return [
        loads(out.message.body)["state"]
        for effects in ledger.seen
        for out in effects.messages
        if out.message.type != control_messages.HANDOFF
    ]


async def kept(ledger: Ledger) -> list[rows.HandoffRecord]:
    """The handoffs of the node `one`."""
    found = await ledger.database.read(lambda tr: tr.get_range(*HANDOFFS.range(("w", "one"))))
    return [rows.unpack(NodeKey("w", "one"), int(HANDOFFS.unpack(key)[2]), row) for key, row in found]


def value_of(agent: str) -> Outcome:
    return replace(completed(agent), agent_id=AgentId(agent))
