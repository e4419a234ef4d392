from __future__ import annotations

import pytest

from coditect import Agent
from coditect.agent.program import CAPABILITIES_AT_ONCE, publish_window, topology
from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.model.ids import AgentId
from coditect.settings.settings import Settings

AGENT_ID = AgentId("many-1")


async def nothing(_task: str) -> None:
    """Do nothing."""


def agent(capabilities: int) -> Agent:
    many = Agent("many", version="1.0.0")
    for number in range(capabilities):
        many.capability(f"work.n{number}")(nothing)
    return many


@pytest.mark.parametrize(
    "capabilities", [1, CAPABILITIES_AT_ONCE - 1, CAPABILITIES_AT_ONCE, 2 * CAPABILITIES_AT_ONCE + 1]
)
def test_agent_declares_what_it_shares_in_steps_of_a_bounded_size(capabilities: int) -> None:
    steps = list(topology(agent(capabilities)))

    whole = base_topology()
    for number in range(capabilities):
        whole += capability_queues(f"work.n{number}")
    most = CAPABILITIES_AT_ONCE * len(capability_queues("any").queues) + len(base_topology().queues)
    assert sum(steps, Topology()) == whole
    assert all(len(step.queues) <= most for step in steps)


@pytest.mark.parametrize(("slots", "published"), [(8, 500), (242, 500), (243, 502), (500, 1_016)])
def test_no_reply_of_an_agent_waits_for_the_confirm_of_another(slots: int, published: int) -> None:
    own = Agent("many", version="1.0.0", slots=slots)
    assert publish_window(own, Settings()) == published
    assert publish_window(agent(1), Settings(slots=slots)) == published
