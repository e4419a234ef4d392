"""Dispatcher processes are killed at every failpoint, one generation after the other: each workflow ends, once."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from subprocess import Popen

import pytest

from coditect.broker.amqp import AmqpBroker
from coditect.client import Client
from coditect.clock import SystemClock
from coditect.errors import ControlPlaneRequired
from coditect.failpoints import VARIABLE
from coditect.local import PrivateServers
from coditect.model import routing
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.model.workflow.states import WorkflowState
from coditect.registry.redis import RedisRegistry
from coditect.run import Run
from dispatcher.layers import outbox
from dispatcher.layers.shards import shard_of
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.witness.ports import POINTS
from tests.integration.agent.fleet import Fleet, open_fleet
from tests.integration.dispatcher.keyed import AGENT, assert_each_once_and_in_order, layered
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

SHARDS = 4
"""As many dispatchers live at once, so that each has one."""
WIDTHS = (72, 6, 6, 6)
"""More side by side than a dispatcher publishes at once: there is something to adopt."""
NODES = sum(WIDTHS)
ROUND_SECONDS = 10.0
"""Who has not died by then gets more work to die in."""
SECONDS = 60.0

Process = Popen[bytes]
Orders = tuple[str, ...]

GENERATIONS: tuple[Orders, ...] = (
    ("commit.before:kill@4", "publish.before:kill@20", "ack.before:kill@5", "answer.before:kill@1"),
    ("commit.after:kill@4", "publish.after:kill@20", "ack.after:kill@5", "answer.after:kill@1"),
    ("tell.before:kill@3", "tell.after:kill@2", "adopt.before:kill@1", "adopt.after:kill@1"),
)


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
    starts: list[asyncio.Task[Run]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    @property
    def ledger(self) -> Path:
        return self.fleet.folder / "ledger.db"

    def begin(self, **more: str) -> Process:
        """A dispatcher, which may die before it is at work."""
        return self.fleet.begin(
            "dispatcher", CODITECT_STORE=f"sqlite:{self.ledger}", CODITECT_SHARDS=str(SHARDS), **more
        )

    def feed(self) -> None:
        """One more workflow for each shard."""
        self.starts += [asyncio.create_task(self._start(client)) for client in self.clients]

    async def _start(self, client: Client) -> Run:
        key = f"failpoints-{next(self._numbers)}"
        while True:
            try:
                return await client.start(layered(WIDTHS, milliseconds=5), key=key)
            except ControlPlaneRequired:
                continue  # nobody lived long enough to answer

    async def all_killed(self, orders: Orders) -> None:
        """Returns when each of these dispatchers died where it was ordered to."""
        processes = [self.begin(**{VARIABLE: order}) for order in orders]
        dead = asyncio.gather(*(asyncio.to_thread(process.wait, SECONDS) for process in processes))
        while not dead.done():
            self.feed()
            await asyncio.wait((dead,), timeout=ROUND_SECONDS)
        assert await dead == [-signal.SIGKILL] * len(orders), self.fleet.logs()
        assert [self._reached(process) for process in processes] == list(orders)

    def _reached(self, process: Process) -> str:
        lines = [json.loads(line) for line in self.fleet.log(process).splitlines()]
        (struck,) = (line for line in lines if line["event"] == "A failpoint is reached")
        return f"{struck['point']}:{struck['act']}@{struck['at']}"

    async def waiting(self, *queues: str) -> dict[str, int]:
        """How much lies in each of the queues that has anything."""
        found = {queue: await self.broker.stats(queue) for queue in queues}
        return {queue: stats.messages for queue, stats in found.items() if stats is not None and stats.messages}


@asynccontextmanager
async def plant(servers: PrivateServers, folder: Path) -> AsyncIterator[Plant]:
    (folder / "keyed").mkdir()
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(open_fleet(servers, folder))
        broker = await stack.enter_async_context(AmqpBroker(servers.amqp_url, name="failpoints"))
        registry = await stack.enter_async_context(RedisRegistry(servers.redis_url))
        clients = [
            await stack.enter_async_context(Client(broker, registry, clock=Aimed(shard=shard)))
            for shard in range(SHARDS)
        ]
        await fleet.start(target=AGENT)
        yield Plant(fleet, broker, clients)


def test_every_failpoint_is_in_the_generations() -> None:
    orders = [order for generation in GENERATIONS for order in generation]

    assert sorted(order.partition(":")[0] for order in orders) == sorted(POINTS)


async def test_workflows_end_once_when_dispatchers_die_at_every_failpoint(
    managed: PrivateServers, tmp_path: Path
) -> None:
    async with plant(managed, tmp_path) as one:
        unrouted = await one.waiting(routing.UNROUTED_QUEUE)
        for orders in GENERATIONS:
            await one.all_killed(orders)

        last = one.begin()
        runs = await asyncio.gather(*one.starts)
        ends = await asyncio.gather(*(run.wait(timeout=SECONDS) for run in runs))

        assert ends == [WorkflowState.COMPLETED] * len(runs), one.fleet.logs()
        for run in runs:
            await assert_each_once_and_in_order(one.fleet, run, NODES)
        await assert_nothing_is_left(one, last, unrouted)


async def assert_nothing_is_left(one: Plant, last: Process, unrouted: dict[str, int]) -> None:
    """Of messages in the broker, and of rows in the outbox, once the last dispatcher has ended in order."""
    tasks = [routing.task_queue("keyed.work", level) for level in Priority]
    await eventually(lambda: _are_empty(one, tasks), seconds=SECONDS)
    last.terminate()
    assert await asyncio.to_thread(last.wait, SECONDS) == 0
    shards = [queue(shard) for shard in range(SHARDS) for queue in (routing.results_queue, routing.control_queue)]
    assert await one.waiting(routing.CONTROL_QUEUE, *shards) == {}
    assert await one.waiting(routing.UNROUTED_QUEUE) == unrouted
    async with SqliteDatabase(one.ledger) as ledger:
        rows = await ledger.read(lambda tr: [outbox.waiting(tr, shard, limit=0) for shard in range(SHARDS)])
    assert rows == [[]] * SHARDS


async def _are_empty(one: Plant, queues: Sequence[str]) -> bool:
    return not await one.waiting(*queues)
