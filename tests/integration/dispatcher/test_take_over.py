"""Dispatchers on one SQLite store: one owns it, the other stands by and takes over when the owner has ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coditect import Workflow
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import ControlPlaneRequired
from coditect.local import PrivateServers
from coditect.operations.status import cluster_status
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.shards.ownership import OWNER_PREFIX
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.programs import Program
from tests.support import eventually, patient

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

SHARDS = 4
NODES = 30
LEDGER = "ledger.db"
SECONDS = 90.0
TAKEN_SECONDS = 4.0
"""Within so long all shards are another's when their dispatcher was killed, or was asked to end."""
STOPPED_SECONDS = 4.0
STANDS_BY, IS_READY = "The dispatcher stands by", "The dispatcher is ready"


@asynccontextmanager
async def plant(servers: PrivateServers, folder: Path) -> AsyncIterator[tuple[Fleet, Client]]:
    """One agent and a client."""
    async with open_fleet(servers, folder) as fleet, client_of(servers) as client:
        await fleet.start()
        yield fleet, client


async def dispatcher(fleet: Fleet) -> Program:
    store = f"sqlite:{fleet.folder / LEDGER}"
    return await fleet.ready(fleet.begin("dispatcher", CODITECT_STORE_URL=store, CODITECT_SHARDS=str(SHARDS)))


async def moved(client: Client, process: Program) -> float:
    """Returns when exactly this process owns all shards; how long it took, in seconds."""
    began = asyncio.get_running_loop().time()

    async def is_so() -> bool:
        try:
            now = await cluster_status(client._broker)
        except ControlPlaneRequired:
            return False
        return {(one.owner or "").rpartition("-")[0] for one in now.shards} == {f"{OWNER_PREFIX}-{process.pid}"}

    await eventually(is_so, seconds=SECONDS)
    return asyncio.get_running_loop().time() - began


async def started_in_every_shard(client: Client, flow: Workflow) -> list[WorkflowRun]:
    """At least one workflow in each: whoever is stopped has something in hand."""
    runs: list[WorkflowRun] = []
    while {shard_of(run.id, SHARDS) for run in runs} != set(range(SHARDS)):
        runs.append(await client.start(flow))
    return runs


def chain(many: int) -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work.do", 100, name="n0")
    for number in range(1, many):
        before = flow.task("work.do", 100, name=f"n{number}", after=[before])
    return flow


async def test_standby_takes_every_shard_in_time_when_the_owner_is_killed_or_ends(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with plant(own_servers, tmp_path) as (fleet, client):
        first = await dispatcher(fleet)
        await moved(client, first)
        second = await dispatcher(fleet)
        assert STANDS_BY in fleet.log(second)
        runs = await started_in_every_shard(client, chain(NODES))

        first.kill()
        killed = await moved(client, second)
        third = await dispatcher(fleet)
        second.terminate()
        ended = await moved(client, third)
        standby = await dispatcher(fleet)
        standby.terminate()

        assert max(killed, ended) < patient(TAKEN_SECONDS), (killed, ended)
        await assert_each_once(runs)
        assert await asyncio.to_thread(second.wait, 10) == 0
        assert await asyncio.to_thread(standby.wait, 10) == 0


async def test_standby_takes_over_when_a_stopped_owner_is_ended(own_servers: PrivateServers, tmp_path: Path) -> None:
    async with plant(own_servers, tmp_path) as (fleet, client):
        owner = await dispatcher(fleet)
        await moved(client, owner)
        standby = await dispatcher(fleet)
        runs = await started_in_every_shard(client, chain(NODES))
        await eventually(lambda: len(fleet.noted("end")) > len(runs))

        owner.send_signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_SECONDS)  # longer than any lease: nothing is to happen meanwhile
        assert owner.poll() is None
        assert IS_READY not in fleet.log(standby)
        owner.kill()

        assert await moved(client, standby) < patient(TAKEN_SECONDS)
        await assert_each_once(runs)


async def assert_each_once(runs: Sequence[WorkflowRun]) -> None:
    assert [await run.wait(timeout=60) for run in runs] == [WorkflowState.COMPLETED] * len(runs)
    ends = [(run.id, row.node) for run in runs async for row in run.attempts() if row.status == "completed"]
    assert len(ends) == len(set(ends)) == NODES * len(runs)
