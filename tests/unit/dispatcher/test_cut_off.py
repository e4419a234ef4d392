"""Dispatchers that are parted from the broker or the store: their shards move, and they come back by themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from coditect import Agent, Context, Workflow
from coditect.aio.network import BOTH, NetworkPath, Way
from coditect.broker.memory import MemoryBroker
from coditect.broker.memory.connection import NOTICED_SECONDS
from coditect.broker.port import Consumer
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.workflow.states import WorkflowState
from dispatcher.program import Dispatcher, DispatcherOptions, running_dispatcher, unready
from dispatcher.store.memory import Disk, MemoryDatabase
from tests.support import eventually

SHARDS = 4
MOVED_SECONDS = 5.0
PARTED_SECONDS = 20.0
QUEUES = (routing.results_queue, routing.control_queue)


@dataclass
class Post:
    """One dispatcher with its ways to the others."""

    broker: MemoryBroker
    store: MemoryDatabase
    dispatcher: Dispatcher

    @property
    def shards(self) -> set[int]:
        return set(self.dispatcher.ownership.workers)

    @property
    def unready(self) -> str:
        return unready(self.broker, self.dispatcher)

    def part(self, of: str, *ways: Way) -> None:
        self._path(of).cut_off(*ways)

    def heal(self, of: str) -> None:
        self._path(of).heal()

    def _path(self, of: str) -> NetworkPath:
        return (self.broker if of == "broker" else self.store).path


@dataclass
class Scene:
    """Two dispatchers on one store, and agents."""

    fleet: TestFleet
    posts: list[Post]
    executed: Counter[str] = field(default_factory=Counter)


class PartedWhileItOpens(MemoryBroker):
    """Is cut off when a shard is about to be listened to, once."""

    parted = False

    async def consume(self, queue: str, *args: Any, **options: Any) -> Consumer:
        if not self.parted and queue in map(routing.results_queue, range(SHARDS)):
            self.parted = True
            self.path.cut_off()
        return await super().consume(queue, *args, **options)


@asynccontextmanager
async def scene(seed: int = 0, *, second: type[MemoryBroker] = MemoryBroker) -> AsyncIterator[Scene]:
    worker, executed = Agent("worker", slots=8), Counter[str]()

    @worker.capability("work")
    async def work(_: None, ctx: Context) -> None:
        executed[ctx.task_id] += 1
        await asyncio.sleep(0.3)

    async with TestFleet([worker], replicas=2, seed=seed) as fleet, AsyncExitStack() as stack:
        fleet.kill("dispatcher")
        disk, posts = Disk(), []
        for name, kind in (("ada", MemoryBroker), ("bob", second)):
            store = await stack.enter_async_context(MemoryDatabase(disk))
            broker = await stack.enter_async_context(kind(fleet.server, name=name))
            running = running_dispatcher(
                broker=broker,
                registry=fleet.registry,
                clock=fleet._clock(name),
                database=store,
                evict=fleet.server,
                options=DispatcherOptions(shards=SHARDS, owner=name),
            )
            posts.append(Post(broker, store, await stack.enter_async_context(running)))
        if second is MemoryBroker:
            await eventually(lambda: [len(post.shards) for post in posts] == [2, 2])
        yield Scene(fleet, posts, executed)
        for post in posts:
            post.heal("broker")
            post.heal("store")


def chain(many: int) -> Workflow:
    flow = Workflow("chain")
    before = flow.task("work", name="n0")
    for number in range(1, many):
        before = flow.task("work", name=f"n{number}", after=[before])
    return flow


@pytest.mark.parametrize("ways", [BOTH, (Way.TO_SERVER,), (Way.TO_CLIENT,)], ids=["both", "mute", "deaf"])
@pytest.mark.parametrize("of", ["broker", "store"])
async def test_shards_of_a_dispatcher_that_is_cut_off_move_and_come_back_when_it_is_healed(
    of: str, ways: tuple[Way, ...]
) -> None:
    async with scene() as one:
        ada, bob = one.posts
        runs = [await one.fleet.start(chain(20)) for _ in range(12)]
        await one.fleet.advance(1)

        ada.part(of, *ways)
        began = one.fleet.elapsed_seconds
        await eventually(lambda: bob.shards == set(range(SHARDS)))
        assert one.fleet.elapsed_seconds - began < MOVED_SECONDS + NOTICED_SECONDS * (ways != BOTH)
        assert (ada.shards, bob.unready) == (set(), "")
        assert of in ada.unready
        done = sum(one.executed.values())
        await one.fleet.advance(3)
        assert sum(one.executed.values()) - done > 60, "all twelve chains go on"

        await one.fleet.advance(PARTED_SECONDS)
        ada.heal(of)
        await eventually(lambda: [len(post.shards) for post in one.posts] == [2, 2])

        assert ada.unready == ""
        assert {await run.wait(timeout="5m") for run in runs} == {WorkflowState.COMPLETED}
        assert max(one.executed.values()) <= 2


@pytest.mark.parametrize("of", ["broker", "store"])
async def test_cut_that_is_shorter_than_a_lease_moves_nothing_and_repeats_nothing(of: str) -> None:
    async with scene() as one:
        ada, bob = one.posts
        before = ada.shards, bob.shards
        runs = [await one.fleet.start(chain(10)) for _ in range(4)]
        await one.fleet.advance(1)

        ada.part(of)
        await one.fleet.advance(1.5)
        ada.heal(of)

        assert {await run.wait(timeout="1m") for run in runs} == {WorkflowState.COMPLETED}
        assert (ada.shards, bob.shards) == before
        assert set(one.executed.values()) == {1}


async def test_dispatchers_of_a_machine_that_stood_still_keep_their_shards() -> None:
    async with scene() as one:
        before = [dict(post.dispatcher.ownership.workers) for post in one.posts]

        one.fleet._virtual_clock.now += PARTED_SECONDS
        await one.fleet.advance(3)

        assert [dict(post.dispatcher.ownership.workers) for post in one.posts] == before


async def test_dispatcher_without_a_broker_takes_no_shard_until_it_has_one_again() -> None:
    async with scene() as one:
        ada, bob = one.posts
        ada.part("broker")
        await eventually(lambda: bob.shards == set(range(SHARDS)))

        seen = set[int]()
        for _ in range(round(PARTED_SECONDS / 0.5)):
            await one.fleet.advance(0.5)
            seen.add(len(bob.shards))

        assert seen == {SHARDS}, "a shard that it took would have nobody who listens"


async def test_dispatcher_that_came_back_keeps_its_connections() -> None:
    async with scene() as one:
        ada, bob = one.posts
        ada.part("broker")
        await eventually(lambda: bob.shards == set(range(SHARDS)))
        ada.heal("broker")
        await eventually(lambda: len(ada.shards) == 2)
        losses = 0

        async def lost() -> None:
            nonlocal losses
            losses += 1

        ada.broker.on_reconnect(lost)
        await one.fleet.advance(15)  # longer than a former owner is looked for

        assert (losses, len(ada.shards)) == (0, 2)


async def test_shard_that_is_given_up_while_it_opens_is_listened_to_by_its_next_owner_alone() -> None:
    async with scene(second=PartedWhileItOpens) as one:
        _, bob = one.posts
        await eventually(lambda: bob.dispatcher.ownership.cut_off_from == "broker")
        await one.fleet.advance(1)

        bob.heal("broker")
        await one.fleet.advance(PARTED_SECONDS)

        assert [(len(post.shards), post.unready) for post in one.posts] == [(2, ""), (2, "")]
        queues = [one.fleet.server.queue(name(shard)) for name in QUEUES for shard in range(SHARDS)]
        assert {queue.stats.consumers for queue in queues} == {1}
        assert await (await one.fleet.start(chain(3))).wait(timeout="1m") is WorkflowState.COMPLETED


async def test_exchange_that_is_gone_keeps_no_shard_from_being_opened() -> None:
    async with scene() as one:
        ada, bob = one.posts
        for exchange in (routing.RESULTS, routing.CONTROL):
            one.fleet.server.delete_exchange(exchange)

        ada.part("broker")

        await eventually(lambda: bob.shards == set(range(SHARDS)))
        run = await one.fleet.start(chain(3))
        assert await run.wait(timeout="1m") is WorkflowState.COMPLETED
