"""An agent that chooses its id has no queue, and no routing key, of another process."""

from __future__ import annotations

import pytest

from coditect.model.ids import AgentId
from coditect.wire import routing

AGENT = AgentId("orders-0123abcd")
DISPATCHER = "dispatcher-7-0123abcd"
CLIENTS = ("orders", "client-0123456789ab", "next.orders")
REPLIES = ("monitor-" + DISPATCHER, "pings-" + DISPATCHER, "question-0123456789ab", "status-0123abcd9", *CLIENTS)


def keys_of(agent_id: AgentId) -> set[str]:
    """The routing keys on `coditect.agents` that lead to an agent process."""
    return {str(agent_id), routing.next_key(agent_id), routing.mailbox_key(agent_id)}


def queues_of(agent_id: AgentId) -> set[str]:
    """The queues of an agent process."""
    return {*routing.own_queues(agent_id), routing.agent_replies(agent_id)}


QUEUES = queues_of(AGENT) | {f"reply.{name}" for name in REPLIES} | {f"events.{DISPATCHER}"}
NAMES = {*keys_of(AGENT), *QUEUES, *REPLIES, DISPATCHER}


@pytest.mark.parametrize("chosen", sorted((NAMES | {name.partition(".")[2] for name in NAMES}) - {"", AGENT}))
def test_a_chosen_id_is_refused_or_has_names_of_its_own(chosen: str) -> None:
    found = AgentId(chosen)
    taken = keys_of(found) & keys_of(AGENT) or queues_of(found) & QUEUES or chosen == DISPATCHER

    assert routing.is_others_name(chosen) or not taken


def test_the_requester_is_known_by_the_reply_queue() -> None:
    for agent_id in (AGENT, AgentId("Code_Reviewer.01")):
        assert routing.process_of(routing.agent_replies(agent_id)) == agent_id
    assert routing.process_of("reply.orders") == "orders"
    assert not routing.is_others_name("monitor-0123abcd")
