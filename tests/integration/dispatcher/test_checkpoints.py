"""A workflow is restored to a checkpoint although the dispatcher is killed meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from coditect.workflow.states import TaskState, WorkflowState
from tests.integration.agent.fleet import client_of, open_fleet
from tests.integration.dispatcher.keyed import AGENT
from tests.integration.dispatcher.test_compensation import SECONDS, executing

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]


def trip() -> Workflow:
    """Two nodes that can be undone, before one that lasts until it is told to stop."""
    flow = Workflow("trip")
    hotel = flow.task("keyed.work", 10, name="hotel", compensate="keyed.undo")
    flight = flow.task("keyed.work", 10, name="flight", after=[hotel], compensate="keyed.undo")
    flow.task("keyed.work", 5_000, name="car", after=[flight])
    return flow


async def test_restore_is_carried_out_though_the_dispatcher_is_killed_in_the_middle(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        store = {"CODITECT_STORE_URL": f"sqlite:{tmp_path / 'ledger.db'}", "CODITECT_SHARDS": "4"}
        dispatcher = await fleet.run("dispatcher", **store)
        await asyncio.gather(*(fleet.start(target=AGENT) for _ in range(2)))
        run = await client.start(trip())

        await executing(fleet, run, "car")
        plan = await run.plan_restore("hotel")
        await run.restore(plan, by="ada")
        await executing(fleet, run, "flight.compensate")
        dispatcher.kill()
        await fleet.run("dispatcher", **store)

        assert await run.wait(timeout=SECONDS) is WorkflowState.COMPLETED, fleet.logs()
        rows = {row.name: row async for row in run.nodes()}
        attempts = {name: [row async for row in run.attempts(name)] for name in rows}
        restores = await run.restores()

    assert plan.lasting == ("car",)
    assert {name: row.state for name, row in rows.items()} == dict.fromkeys(rows, TaskState.COMPLETED)
    assert rows.keys() == {"hotel", "flight", "car", "flight.compensate"}
    assert [row.status for row in attempts["hotel"]] == ["completed"]
    assert [row.status for row in attempts["flight"]] == ["completed", "completed"]
    assert [row.status for row in attempts["car"]] == ["canceled", "completed"]
    assert attempts["car"][0].fence < attempts["car"][1].fence
    assert [(row.checkpoint, row.by) for row in restores] == [("hotel", "ada")]
