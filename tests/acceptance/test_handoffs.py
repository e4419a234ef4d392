"""A handoff on real servers: one agent declines it, the next accepts it and is killed -9; there is one result."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.collaboration.handoffs import HandoffState
from coditect.local import PrivateServers
from tests.integration.agent.fleet import client_of, open_fleet
from tests.support import eventually

pytestmark = pytest.mark.servers

AGENTS = Path(__file__).with_name("handoff_agents.py")


@pytest.mark.timeout(180)
async def test_a_handoff_is_declined_then_accepted_and_its_new_owner_is_killed(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        for name in ("asker", "proud", "billing", "billing"):
            await fleet.start(target=f"{AGENTS}:{name}")

        handle = await client.submit("handoff.answer", "7", durable=True)
        run = client.workflows.get(str(handle.task_id).partition(":")[0])

        async def works() -> bool:
            agents = [str(one.agent) async for one in run.attempts() if one.started_at_ms]
            return bool(fleet.noted("start")) and len(agents) > 1 and agents[-1].startswith("billing-")

        await eventually(works, seconds=60)
        (row,) = [row async for row in client.handoffs.list()]
        pid = next(int(words[2]) for words in fleet.effects() if words[0] == "start")
        accepted = next(one for one in fleet.processes if one.pid == pid)
        accepted.kill()
        value = await handle.result(dict, timeout="2m")
        attempts = [row async for row in run.attempts()]
        shown = await client.handoffs.get(row.handoff)
        said = await fleet.coditect("task", "handoff", "get", row.handoff, COLUMNS="400")
        history = await fleet.coditect("workflow", "get", run.id, "--history", COLUMNS="400")

    assert (row.state, row.by.rpartition("-")[0]) == (HandoffState.ACCEPTED, "billing")
    assert [(agent.rpartition("-")[0], why) for agent, why in row.reasons.items()] == [
        ("proud", "not my kind of ticket")
    ]
    assert shown.context == value["context"] == {"ticket": "7"}
    assert fleet.noted("back") == []
    assert len(fleet.noted("start")) == 2
    assert len(fleet.noted("end")) == 1
    told = [(one.status, one.agent.rpartition("-")[0], one.attempt) for one in attempts]
    assert told[:2] == [("handed_off", "asker", 1), ("lost", "billing", 1)]
    assert (told[2][0], told[2][2]) == ("completed", 2)
    fences = [one.fence for one in attempts]
    assert fences == sorted(set(fences))
    assert value["fence"] == fences[-1]
    assert "declined: not my kind of ticket" in said
    assert "accepted" in said
    assert "attempt.handed_off" in history
    assert "a matter of money" in history


@pytest.mark.timeout(120)
async def test_a_handler_in_a_process_of_its_own_hands_its_task_off(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        for name in ("asker", "billing"):
            await fleet.start(target=f"{AGENTS}:{name}")

        handle = await client.submit("handoff.process", "8", durable=True)
        value = await handle.result(dict, timeout="1m")
        attempts = [row async for row in client.workflows.get(str(handle.task_id).partition(":")[0]).attempts()]

    assert (value["reason"], value["context"]) == ("from a process", {"ticket": "8"})
    assert [one.status for one in attempts] == ["handed_off", "completed"]
    assert fleet.noted("back") == []
