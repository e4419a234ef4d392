"""A workflow is undone although the dispatcher, the compensating agent and the broker are killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.client.workflow_run import Run
from coditect.local import PrivateServers
from coditect.workflow.states import TaskState, WorkflowState
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.integration.dispatcher.keyed import AGENT
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SECONDS = 90.0


def trip() -> Workflow:
    """Two nodes that can be undone, before one that fails for good."""
    flow = Workflow("trip")
    hotel = flow.task("keyed.work", 10, name="hotel", compensate="keyed.undo")
    flight = flow.task("keyed.work", 10, name="flight", after=[hotel], compensate="keyed.undo")
    flow.task("keyed.fail", name="card", after=[flight], compensate="keyed.undo")
    return flow


async def test_first_two_nodes_are_undone_in_reverse_order_though_everything_is_killed_once(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        store = {"CODITECT_STORE_URL": f"sqlite:{tmp_path / 'ledger.db'}", "CODITECT_SHARDS": "4"}
        dispatcher = await fleet.run("dispatcher", **store)
        await asyncio.gather(*(fleet.start(target=AGENT) for _ in range(2)))
        run = await client.start(trip())

        pid = await executing(fleet, run, "flight.compensate")
        dispatcher.kill()
        os.kill(pid, signal.SIGKILL)
        await fleet.run("dispatcher", **store)
        await executing(fleet, run, "hotel.compensate")
        await own_servers.kill_broker()
        await own_servers.start_broker()

        assert await run.wait(timeout=SECONDS) is WorkflowState.COMPENSATED, fleet.logs()
        undone = [task_id for task_id in fleet.noted("effect") if task_id.endswith(".compensate")]
        assert undone == [f"{run.id}:flight.compensate", f"{run.id}:hotel.compensate"]
        rows = {row.name: row async for row in run.nodes()}
        attempts = [row async for row in run.attempts("flight.compensate")]

    assert rows.keys() == {"hotel", "flight", "card", "flight.compensate", "hotel.compensate"}
    assert rows["card"].state is TaskState.FAILED
    assert [row.status for row in attempts] == ["lost", "completed"]
    assert attempts[0].fence < attempts[1].fence


async def executing(fleet: Fleet, run: Run, node: str) -> int:
    """The process that executes the node, once the ledger knows that one does."""

    async def is_known() -> bool:
        rows = {row.name: row.state async for row in run.nodes()}
        return rows.get(node) is TaskState.WORKING

    await eventually(is_known, seconds=SECONDS)
    return int([pid for kind, task_id, pid in fleet.effects() if (kind, task_id) == ("start", f"{run.id}:{node}")][-1])
