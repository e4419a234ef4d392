"""Redis, the broker, and everything at once are wiped under a workflow of processes: it ends, and each node once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.local import PrivateServers
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.taskgraph.port import JobState
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import counted
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.integration.dispatcher.keyed import AGENT, assert_each_once_and_in_order, layered
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

WIDTH, DEPTH = 40, 6
NODES = WIDTH * DEPTH
AGENTS, SHARDS = 2, 4
SECONDS = 90.0


@dataclass(slots=True)
class Plant:
    """The processes of one test."""

    servers: PrivateServers
    fleet: Fleet
    client: Client

    async def start(self) -> None:
        """A dispatcher and the agents."""
        store = f"sqlite:{self.fleet.folder / 'ledger.db'}"
        await self.fleet.run("dispatcher", CODITECT_STORE_URL=store, CODITECT_SHARDS=str(SHARDS))
        await asyncio.gather(*(self.fleet.start(target=AGENT) for _ in range(AGENTS)))

    async def amid(self, run: WorkflowRun) -> None:
        """Returns when a wipe proves something: 30 to 70 % done, and at least 20 with the broker."""

        async def is_amid() -> bool:
            counts = (await run.overview()).counts
            done = counts.get(TaskState.COMPLETED, 0) / NODES
            assert done < 0.7, "too late, it would prove nothing"
            published = counts.get(TaskState.PUBLISHED, 0) + counts.get(TaskState.WORKING, 0)
            return done >= 0.3 and published >= 20

        await eventually(is_amid, seconds=SECONDS)

    async def wipe_redis(self) -> None:
        """Redis loses everything and is not restarted."""
        await self.servers.wipe_redis()

    async def wipe_broker(self) -> None:
        """The broker is killed, loses everything and comes back empty."""
        await self.servers.wipe_broker()
        await self.servers.start_broker()

    async def wipe_all(self) -> None:
        """Every process is killed, every server loses everything, and all start anew."""
        for process in self.fleet.processes:
            process.kill()
        await self.servers.wipe_redis()
        await self.servers.kill_redis()
        await self.servers.wipe_broker()
        await asyncio.gather(self.servers.start_redis(), self.servers.start_broker())
        await self.start()


@asynccontextmanager
async def plant(servers: PrivateServers, folder: Path) -> AsyncIterator[Plant]:
    async with open_fleet(servers, folder) as fleet, client_of(servers) as client:
        found = Plant(servers, fleet, client)
        await found.start()
        yield found


async def test_workflow_ends_once_when_everything_is_killed_and_wiped(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with plant(own_servers, tmp_path) as one:
        await assert_ends_once(one, one.wipe_all, jobs=NODES)


@pytest.mark.endurance
async def test_workflows_end_once_whatever_is_wiped(own_servers: PrivateServers, tmp_path: Path) -> None:
    async with plant(own_servers, tmp_path) as one:
        await assert_ends_once(one, one.wipe_redis, jobs=NODES)
        await assert_ends_once(one, one.wipe_broker, jobs=2 * NODES)
        await assert_ends_once(one, one.wipe_all, jobs=NODES)  # what had ended is not shown again


async def assert_ends_once(one: Plant, wipe: Callable[[], Awaitable[None]], *, jobs: int) -> None:
    """A workflow that is wiped amid its work; then RQ shows so many jobs that are finished."""
    run = await one.client.start(layered([WIDTH] * DEPTH, milliseconds=250))
    await one.amid(run)

    await wipe()

    assert await run.wait(timeout=SECONDS) is WorkflowState.COMPLETED, one.fleet.logs()
    await assert_each_once_and_in_order(one.fleet, run, NODES)
    await _rq_shows(one, JobState.FINISHED, jobs)


async def _rq_shows(one: Plant, state: JobState, number: int) -> None:
    async with RedisTaskGraph(one.servers.redis_url, worker="test") as graph:

        async def does() -> bool:
            return (await counted(graph, range(SHARDS)))[state] == number

        await eventually(does)
