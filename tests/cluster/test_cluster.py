"""One node of a cluster of three is killed, frozen or restarted under load: service continues, and no task is lost."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from coditect.client.client import Client
from coditect.errors import CoditectError
from coditect.local.probe import port_open
from coditect.settings.settings import Settings
from tests.cluster.nodes import NODES, TICK_SECONDS, Cluster, running_cluster
from tests.servers import ROOT
from tests.support import eventually, patient

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900)]
CONTINUES_SECONDS = 5.0
"""From the instant at which a majority of the nodes is there until the next task ends, at most."""
NOTICED_SECONDS = 1.25 * TICK_SECONDS
"""The time in which the others notice a frozen node: until then there is no majority for what it led."""
ANSWER_SECONDS = 120.0
LOOK_SECONDS = 0.2
AT_ONCE = 5


@dataclass
class Load:
    """Tasks one after the other, and when each was accepted and answered."""

    client: Client
    durable: bool
    ended_at: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """The tasks that were accepted and had no good answer."""
    stopping: bool = False

    @property
    def name(self) -> str:
        return "durable" if self.durable else "direct"

    async def run(self) -> None:
        while not self.stopping:
            try:
                handle = await self.client.submit("load.work", {"milliseconds": 50}, durable=self.durable)
            except CoditectError as error:
                self.refused.append(str(error))
                continue
            try:
                await handle.result(timeout=ANSWER_SECONDS)
                self.ended_at.append(asyncio.get_running_loop().time())
            except CoditectError as error:
                self.lost.append(f"{handle.task_id}: {error}")

    def pause_seconds(self, since: float, minority_at: Sequence[float]) -> float:
        """The longest time without an answer since the given instant, as far as a majority of the nodes was there."""
        instants = sorted(at for at in (*self.ended_at, *minority_at) if at > since)
        return max(later - at for at, later in pairwise([since, *instants, asyncio.get_running_loop().time()]))


@dataclass(frozen=True)
class Scene:
    """A cluster, and the loads on the fleet that works through it."""

    cluster: Cluster
    loads: tuple[Load, ...]
    minority_at: list[float] = field(default_factory=list)
    """The instants at which fewer than two nodes took connections: RabbitMQ may restart two at once to heal."""

    @contextmanager
    def measured(self, what: str, *, promised_seconds: float) -> Iterator[None]:
        """Fail if a load had a longer pause in the block than is promised, of a machine as busy as this one."""
        began = asyncio.get_running_loop().time()
        yield
        for load in self.loads:
            pause = load.pause_seconds(began, self.minority_at)
            print(f"{what}: {load.name} tasks paused for {pause:.2f} s; {len(load.ended_at)} ended, "
                  f"{len(load.refused)} refused, {len(load.lost)} lost so far")  # fmt: skip
            assert pause <= patient(promised_seconds), load.refused[-3:]

    async def watch(self) -> None:
        """Note when no majority of the nodes is there."""
        while True:
            there = [await port_open(self.cluster.port_of(node))() for node in NODES]
            if sum(there) < 2:
                self.minority_at.append(asyncio.get_running_loop().time())
            await asyncio.sleep(LOOK_SECONDS)

    async def calm(self) -> None:
        """Let some more tasks of each kind end."""
        before = [len(load.ended_at) for load in self.loads]

        def more() -> bool:
            return all(len(load.ended_at) >= n + 10 * AT_ONCE for n, load in zip(before, self.loads, strict=True))

        await eventually(more)


@asynccontextmanager
async def fleet_up(cluster: Cluster, folder: Path) -> AsyncIterator[None]:
    """A dispatcher and two agents on the cluster, as `coditect up` runs them."""
    environment = {
        **os.environ,
        "CODITECT_AMQP_URL": cluster.amqp_url,
        "CODITECT_REDIS_URL": cluster.redis_url,
        "CODITECT_REPLY_QUEUE": "quorum",
        "CODITECT_LOAD_LOG": str(folder / "effects.log"),
    }

    async def coditect(*words: str) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coditect", *words, cwd=folder, env=environment, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0, f"coditect {words[0]} failed"

    try:
        await coditect("up", "--detach", f"{ROOT / 'agents' / 'load.py'}=2")
        yield
    finally:
        await coditect("down")


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Programs that all name the three nodes, under load; at the end every accepted task was answered."""
    async with running_cluster(tmp_path / "servers") as cluster, fleet_up(cluster, tmp_path):
        settings = Settings(amqp_url=cluster.amqp_url, redis_url=cluster.redis_url, reply_queue="quorum")
        async with Client.connecting(settings) as client, asyncio.TaskGroup() as working:
            loads = (Load(client, durable=False), Load(client, durable=True))
            for load in loads:
                for _ in range(AT_ONCE):
                    working.create_task(load.run())
            scene = Scene(cluster, loads)
            watching = working.create_task(scene.watch())
            await scene.calm()
            try:
                yield scene
            finally:
                watching.cancel()
                for load in loads:
                    load.stopping = True
    assert [load.lost for load in loads] == [[], []]


async def test_service_continues_while_any_one_node_is_dead(scene: Scene) -> None:
    for node in NODES:
        with scene.measured(f"node {node} killed", promised_seconds=CONTINUES_SECONDS):
            await scene.cluster.kill(node)
            await scene.calm()
        with scene.measured(f"node {node} started again", promised_seconds=CONTINUES_SECONDS):
            await scene.cluster.start_one(node)
            await scene.cluster.whole()
            await scene.calm()


async def test_service_continues_when_a_frozen_node_is_noticed_and_when_it_is_back(scene: Scene) -> None:
    for node in NODES:
        with scene.measured(f"node {node} frozen", promised_seconds=NOTICED_SECONDS + CONTINUES_SECONDS):
            async with scene.cluster.frozen(node):
                await asyncio.sleep(NOTICED_SECONDS)
                await scene.calm()
        with scene.measured(f"node {node} continued", promised_seconds=CONTINUES_SECONDS):
            await scene.calm()
            await scene.cluster.rejoin(node)


async def test_service_continues_through_a_rolling_restart(scene: Scene) -> None:
    for node in NODES:
        with scene.measured(f"node {node} restarted", promised_seconds=CONTINUES_SECONDS):
            await scene.cluster.restart(node)
            await scene.cluster.whole()
            await scene.calm()
