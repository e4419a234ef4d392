"""A race on real servers, while the dispatcher is killed: one result, and the others are canceled."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect import Workflow
from coditect.local import PrivateServers
from coditect.workflow.states import WorkflowState
from tests.integration.agent.fleet import client_of, open_fleet
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

QUICK, SLOW = 4_000, 59_000


async def test_a_race_has_one_winner_and_cancels_the_rest_though_the_dispatcher_is_killed(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    flow = Workflow("race")
    racers = [flow.task("work.do", lasts, name=name) for name, lasts in (("slow", SLOW), ("quick", QUICK))]
    flow.task("work.do", 0, name="taken", after=racers, join="any", rest="cancel")
    store = {"CODITECT_STORE_URL": f"sqlite:{tmp_path / 'ledger.db'}", "CODITECT_SHARDS": "4"}
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        dispatcher = await fleet.run("dispatcher", **store)
        await fleet.start()
        run = await client.start(flow)
        await eventually(lambda: len(fleet.noted("start")) == 2)
        dispatcher.kill()
        dispatcher.wait()
        await fleet.run("dispatcher", **store)

        assert await run.wait(timeout=SLOW / 1000 - 10) is WorkflowState.COMPLETED, fleet.logs()
        states = {row.name: row.state.value async for row in run.nodes()}
        ended = fleet.noted("end")

    assert states == {"slow": "canceled", "quick": "completed", "taken": "completed"}
    assert set(ended) == {f"{run.id}:quick", f"{run.id}:taken"}  # a kill may have a task executed twice
