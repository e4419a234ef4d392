"""Dispatchers die at every failpoint, and each takes over from those before: workflows end, each node once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaos.failpoints import Act
from chaos.recorder import POINTS
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import ControlPlaneRequired
from coditect.local import PrivateServers
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.registry.redis import RedisRegistry
from coditect.wire import routing
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.workflows.recover import Active, learn
from dispatcher.store.sqlite import SqliteDatabase
from tests.integration.agent.fleet import Fleet, open_fleet
from tests.integration.dispatcher.keyed import AGENT, assert_each_once_and_in_order, layered
from tests.programs import Program
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(240)]

SHARDS = 4
AT_ONCE = 8
"""Dispatchers that live at once: one owns the store, the others wait for its death, and take over what it left."""
WIDTHS = (68, 4, 4, 4)
"""More side by side than a dispatcher publishes at once: there is something to adopt."""
NODES = sum(WIDTHS)
ROUND_SECONDS = 8.0
"""After so long there is more work, for those to die in that still live."""
SECONDS = 90.0


AT: Mapping[str, int] = {"commit": 4, "publish": 20, "ack": 5, "answer": 1, "tell": 2, "adopt": 1}
"""Which time it is that kills: amid the work on a workflow, or in taking it over from who died before."""
ORDERS = tuple(f"{point}:kill@{AT[point.partition('.')[0]]}" for point in POINTS)
STOPPED = "commit.before:stop@5"
"""Owns the store until it is killed, as its supervisor would do."""
SEEDS = range(1, 6)


def drawn(seed: int) -> tuple[str, ...]:
    """The same orders in another sequence, each at another time."""
    seeded = Random(seed)
    orders = [f"{point}:kill@{seeded.randint(1, 2 * AT[point.partition('.')[0]])}" for point in POINTS]
    return tuple(seeded.sample(orders, len(orders)))


@dataclass(frozen=True, slots=True)
class Aimed(SystemClock):
    """Gives ids of one shard only."""

    shard: int = 0

    def new_id(self) -> TaskId:
        while shard_of(found := SystemClock.new_id(self), SHARDS) != self.shard:
            pass
        return found


@dataclass(slots=True)
class Plant:
    """The processes of one test, and a client for each shard."""

    fleet: Fleet
    broker: AmqpBroker
    clients: Sequence[Client]
    starts: list[asyncio.Task[WorkflowRun]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    @property
    def ledger(self) -> Path:
        return self.fleet.folder / "ledger.db"

    def begin(self, *orders: str) -> Program:
        """A dispatcher with these orders, which may die before it is at work."""
        store = {"CODITECT_STORE_URL": f"sqlite:{self.ledger}", "CODITECT_SHARDS": str(SHARDS)}
        return self.fleet.begin("chaos.dispatcher", *orders, **store)

    async def _start(self, client: Client) -> WorkflowRun:
        key = f"failpoints-{next(self._numbers)}"
        while True:
            try:
                return await client.start(layered(WIDTHS, milliseconds=1), idempotency_key=key)
            except ControlPlaneRequired:
                continue  # nobody lived long enough to answer

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """One more workflow for each shard, again and again, until the block ends."""
        feeding = asyncio.create_task(self._feed())
        try:
            yield
        finally:
            feeding.cancel()

    async def _feed(self) -> None:
        while True:
            self.starts += [asyncio.create_task(self._start(client)) for client in self.clients]
            await asyncio.sleep(ROUND_SECONDS)

    async def dies(self, order: str) -> None:
        """Returns when a dispatcher died where it was ordered to, or was stopped there and then killed."""
        async with self._places:
            process = self.begin(order)
            if order.partition(":")[2].startswith(Act.STOP):
                await eventually(lambda: self._struck(process), seconds=SECONDS)
                process.kill()
            await eventually(lambda: process.poll() is not None, seconds=SECONDS)
        assert process.returncode == -signal.SIGKILL, self.fleet.log(process)
        (struck,) = self._struck(process)
        assert f"{struck['point']}:{struck['act']}@{struck['at']}" == order

    def _struck(self, process: Program) -> list[dict[str, Any]]:
        return logged(self.fleet.log(process), "A failpoint is reached")

    async def waiting(self, *queues: str) -> dict[str, int]:
        """How much lies in each of the queues that has anything."""
        found = {queue: await self.broker.stats(queue) for queue in queues}
        return {queue: stats.messages for queue, stats in found.items() if stats is not None and stats.messages}


def logged(text: str, event: str) -> list[dict[str, Any]]:
    """What the log says of such an event."""
    return [json.loads(line) for line in text.splitlines() if f'"event": "{event}"' in line]


@asynccontextmanager
async def plant(servers: PrivateServers, folder: Path) -> AsyncIterator[Plant]:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(servers, folder))
        broker = await stack.enter_async_context(AmqpBroker(servers.amqp_url, name="failpoints"))
        registry = await stack.enter_async_context(RedisRegistry(servers.redis_url))
        clients = [
            await stack.enter_async_context(Client(broker, registry, clock=Aimed(shard=shard)))
            for shard in range(SHARDS)
        ]
        await fleet.start(target=AGENT, CODITECT_SLOTS="32")
        one = Plant(fleet, broker, clients)
        try:
            yield one
        finally:
            for start in one.starts:
                start.cancel()


async def test_workflows_end_once_at_every_failpoint(own_servers: PrivateServers, tmp_path: Path) -> None:
    await assert_workflows_end_once(own_servers, tmp_path, ORDERS)


@pytest.mark.endurance
@pytest.mark.parametrize("seed", SEEDS)
async def test_workflows_end_once_at_drawn_failpoints(own_servers: PrivateServers, tmp_path: Path, seed: int) -> None:
    await assert_workflows_end_once(own_servers, tmp_path, drawn(seed))


async def assert_workflows_end_once(servers: PrivateServers, folder: Path, orders: Sequence[str]) -> None:
    async with plant(servers, folder) as one:
        unrouted = await one.waiting(routing.UNROUTED_QUEUE)
        async with one.feeding(), asyncio.TaskGroup() as group:
            group.create_task(one.dies(STOPPED))
            await asyncio.gather(*(one.dies(order) for order in orders))
            last = one.begin()  # who stands still may be the only one left of them

        runs = await asyncio.gather(*one.starts)
        ends = await asyncio.gather(*(run.wait(timeout=SECONDS) for run in runs))

        assert ends == [WorkflowState.COMPLETED] * len(runs), one.fleet.logs()
        for run in runs:
            await assert_each_once_and_in_order(one.fleet, run, NODES)
        await assert_nothing_is_left(one, last, unrouted)


async def assert_nothing_is_left(one: Plant, last: Program, unrouted: dict[str, int]) -> None:
    """Of messages in the broker, and of nodes in the outbox, once the last dispatcher has ended in order."""
    tasks = [routing.task_queue("keyed.work", level) for level in Priority]
    await eventually(lambda: _are_empty(one, tasks), seconds=SECONDS)
    await _ends_in_order(last)
    shards = [queue(shard) for shard in range(SHARDS) for queue in (routing.results_queue, routing.control_queue)]
    requests = [routing.CONTROL_QUEUE, *shards]
    while await one.waiting(*requests):  # copies of answered requests that were in its hand: the next one takes them
        last = one.begin()
        await eventually(lambda: _are_empty(one, requests), seconds=SECONDS)
        await _ends_in_order(last)
    assert await one.waiting(routing.UNROUTED_QUEUE) == unrouted
    async with SqliteDatabase(one.ledger) as ledger:
        found = [await learn(ledger, shard) for shard in range(SHARDS)]
    assert [(one.active, one.unsent) for one in found] == [(Active(), {})] * SHARDS


async def _ends_in_order(process: Program) -> None:
    process.terminate()
    assert await asyncio.to_thread(process.wait, SECONDS) == 0


async def _are_empty(one: Plant, queues: Sequence[str]) -> bool:
    return not await one.waiting(*queues)
