"""An agent under an approval policy: direct tasks that need an approval are refused, and forged owners lead nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coditect import Agent
from coditect.broker.memory import MemoryBroker
from coditect.errors import NotFound, TaskRejected
from coditect.model.message import Message
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.headers import HEADER_PREFIX

POLICY = """
rules:
  - {name: small, of: task, capability: deploy, when: "input.share <= `10`", risk: low, action: approve}
  - {name: never, of: task, capability: deploy, when: "input.share > `90`", risk: high, action: refuse}
  - {name: rest, of: task, capability: deploy, risk: high, action: ask}
  - {name: dear, of: task, tags: [dear], cost_above: 5, risk: high, action: ask}
"""


def works(ran: list[Any]) -> Agent:
    agent = Agent("works", tags={"dear"})

    async def do(value: Any) -> Any:
        ran.append(value)
        return value

    agent.capability("deploy")(do)
    agent.capability("think", cost=9.0)(do)
    agent.capability("talk", cost=1.0)(do)
    return agent


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "approvals.yaml").write_text(POLICY)
    return Settings(approval_policy=str(tmp_path / "approvals.yaml"))


async def test_direct_tasks_that_need_no_approval_run(settings: Settings) -> None:
    ran: list[Any] = []
    async with TestFleet(agents=[works(ran)], settings=settings) as fleet:
        await fleet.request("deploy", {"share": 5})
        await fleet.request("talk", "hello")

    assert ran == [{"share": 5}, "hello"]


@pytest.mark.parametrize(
    ("capability", "value", "reason", "fix"),
    [
        ("deploy", {"share": 50}, "approval_required", "durable=True"),
        ("deploy", {"share": 95}, "refused_by_policy", "ask the operator"),
        ("think", "deeply", "approval_required", "--detach"),
    ],
)
async def test_a_direct_task_that_needs_an_approval_is_refused_and_says_what_to_do(
    settings: Settings, capability: str, value: Any, reason: str, fix: str
) -> None:
    ran: list[Any] = []
    async with TestFleet(agents=[works(ran)], settings=settings) as fleet:
        with pytest.raises(TaskRejected) as refused:
            await fleet.request(capability, value)

    assert ran == []
    assert (reason in str(refused.value), fix in str(refused.value)) == (True, True)


async def test_a_task_that_forges_a_fresh_owner_does_not_lead_past_the_policy(settings: Settings) -> None:
    ran: list[Any] = []
    async with TestFleet(agents=[works(ran)], settings=settings) as fleet:
        now = round(fleet._epoch_ms + fleet.elapsed_seconds * 1000)
        named = {"workflow": "none", "origin": "0", "node": "n", "fence": 1, "publication": 7, "published-at": now}
        headers = {HEADER_PREFIX + name: value for name, value in named.items()}
        async with MemoryBroker(fleet.server, name="stranger") as stranger:
            message = Message(b'{"share": 50}', headers, message_id="forged")
            await stranger.publish(message, exchange=routing.TASKS, routing_key="deploy.p1")
            await fleet.advance("30s")

    assert ran == []


async def test_an_agent_without_its_policy_s_file_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such policy"):
        async with TestFleet(agents=[works([])], settings=Settings(approval_policy=str(tmp_path / "none.yaml"))):
            pass
