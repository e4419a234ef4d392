"""Children of workflows on real servers, while the dispatcher is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.local import PrivateServers
from coditect.workflow.states import TaskState, WorkflowState
from tests.integration.agent.fleet import client_of, open_fleet
from tests.integration.dispatcher.keyed import AGENT
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SECONDS = 90.0


def press(version: int) -> Workflow:
    """A workflow whose child waits for a signal; version 2 has a step more than version 1."""
    child = Workflow("press")
    go = child.signal("go", after=[child.task("keyed.work", 0, name="set")], name="held")
    for number in range(version):
        go = child.task("keyed.work", 0, name=f"step_{number}", after=[go])
    flow = Workflow("shop")
    book = flow.workflow(child, name="book")
    flow.task("keyed.work", 0, name="sold", after=[book])
    return flow


async def test_children_keep_their_definition_and_end_once_though_the_dispatcher_is_killed_while_they_run(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        store = {"CODITECT_STORE_URL": f"sqlite:{tmp_path / 'ledger.db'}", "CODITECT_SHARDS": "4"}
        dispatcher = await fleet.run("dispatcher", **store)
        await fleet.start(target=AGENT)
        old = await client.start(press(1))
        child = client.run(await held(client, old))
        dispatcher.kill()
        await asyncio.to_thread(dispatcher.wait)
        dispatcher = await fleet.run("dispatcher", **store)
        new = await client.start(press(2))
        newer = client.run(await held(client, new))

        for one in (child, newer):
            await one.signal("go", None, id="1")
        dispatcher.kill()
        await fleet.run("dispatcher", **store)

        assert [await run.wait(timeout=SECONDS) for run in (old, new)] == [WorkflowState.COMPLETED] * 2, fleet.logs()
        executed = fleet.noted("effect")
        parents = [(await run.overview()).parent for run in (child, newer)]
        begun = [row.children for run in (old, new) async for row in run.nodes() if row.name == "book"]
        steps = [[row.name async for row in run.nodes()] for run in (child, newer)]

    assert parents == [old.id, new.id]
    assert begun == [(child.id,), (newer.id,)]
    assert [sorted(names) for names in steps] == [["held", "set", "step_0"], ["held", "set", "step_0", "step_1"]]
    assert len(executed) == len(set(executed)) == 7


async def held(client: Client, run: Run) -> str:
    """The id of the child of the node `book`, once it waits for its signal."""
    known: list[str] = []

    async def waits() -> bool:
        known[:] = [child async for row in run.nodes() if row.name == "book" for child in row.children]
        states = [row.state async for row in client.run(known[-1]).nodes() if row.name == "held"] if known else []
        return states == [TaskState.WAITING]

    await eventually(waits, seconds=SECONDS)
    return known[-1]
