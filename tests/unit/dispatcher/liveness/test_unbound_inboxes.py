"""The inboxes of dead agents: unbound, and deleted when the management API surely tells that they have no message."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.queue import DEAD_LETTER_RETRY_SECONDS
from coditect.broker.topology import MAILBOX_EXPIRES_MS, Binding, Queue, Topology, agent_queues, inbox_binding
from coditect.errors import Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.wire import routing
from dispatcher.ledger.keyspace import UNBOUND
from dispatcher.liveness.left_queues import FEW
from dispatcher.liveness.monitor import SWEEP_SECONDS
from dispatcher.liveness.roster import SUSPECT_SECONDS
from dispatcher.store.transaction import read_counter, write_counter
from tests.unit.dispatcher.liveness.test_left_queues import (
    FOUND_SECONDS,
    LEASE_SECONDS,
    LIFE_SECONDS,
    Unlisted,
    left_of,
)
from tests.unit.dispatcher.liveness.watch import Watch, open_watch
from tests.unit.registry.samples import IDLE, make_registration
from tests.unit.testing.workers import Sleepers

DEAD, FULL = AgentId("dead"), Queue("full", max_length=1)


async def die_with_two_tasks(watch: Watch, broker: MemoryBroker) -> None:
    """An agent dies whose inbox has two tasks, of which the queue that gets them has room for one."""
    bounded = Topology(queues=(FULL,), bindings=(Binding(routing.TASKS, FULL.name, DEAD),))
    async with MemoryBroker(watch.fleet.server, name=DEAD) as its_own:
        await its_own.declare(agent_queues(DEAD, slots=4) + bounded)
    for body in (b"first", b"second"):
        await broker.publish(Message(body=body), exchange=routing.AGENTS, routing_key=DEAD)


async def test_tasks_of_a_dead_agent_s_inbox_that_a_full_queue_refuses_wait_there_until_it_has_room() -> None:
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="any") as broker:
        await die_with_two_tasks(watch, broker)
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{FOUND_SECONDS + SWEEP_SECONDS}s")
        waiting = left_of(watch, DEAD)
        with pytest.raises(Unroutable):
            await broker.publish(Message(body=b"late"), exchange=routing.AGENTS, routing_key=DEAD)
        found = [await taken(broker, FULL)]
        await watch.fleet.advance(f"{DEAD_LETTER_RETRY_SECONDS}s")
        found.append(await taken(broker, FULL))
        await watch.fleet.advance(f"{SWEEP_SECONDS + FOUND_SECONDS}s")

        assert waiting == [routing.inbox_queue(DEAD)]
        assert found == [b"first", b"second"]
        assert left_of(watch, DEAD) == []


class Late(Unlisted):
    """An evictor whose numbers of messages are ten seconds old: of what was published at the start it knows later."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.began = asyncio.get_running_loop().time()

    async def messages(self, queue: str) -> int | None:
        is_old = asyncio.get_running_loop().time() < self.began + 10.0
        return 0 if is_old else await super().messages(queue)


async def test_inbox_is_kept_until_the_number_of_its_messages_is_younger_than_its_last_one() -> None:
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="any") as broker:
        await die_with_two_tasks(watch, broker)
        late = Late(watch.fleet.server)
        for owner in ("first", "second", "third"):
            await watch.dispatcher(owner, evict=late)
            await watch.fleet.advance(f"{LIFE_SECONDS}s")
            await watch.end(owner)
        await watch.dispatcher("last", evict=late)
        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert left_of(watch, DEAD) == [routing.inbox_queue(DEAD)]


@pytest.mark.parametrize("expired", [True, False])
async def test_inbox_that_is_bound_again_after_its_noted_instant_is_kept(expired: bool) -> None:
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="any") as broker:
        long_ago = await watch.fleet.registry.now_ms() - 60_000
        await watch.database.run(lambda tr: tr.set(UNBOUND.pack((DEAD,)), write_counter(long_ago)))
        await die_with_two_tasks(watch, broker)
        if expired:  # the mailbox, while no dispatcher was there
            await broker.delete_queue(routing.mailbox_queue(DEAD))
        await watch.dispatcher(evict=Late(watch.fleet.server))
        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert left_of(watch, DEAD) == [routing.inbox_queue(DEAD)]


async def test_inbox_of_an_agent_that_was_back_and_drains_just_before_the_next_look_is_kept() -> None:
    registration = replace(make_registration(), agent_id=DEAD)
    bounded = Topology(queues=(FULL,), bindings=(Binding(routing.TASKS, FULL.name, DEAD),))
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="any") as broker:
        async with MemoryBroker(watch.fleet.server, name=DEAD) as before:
            await before.declare(agent_queues(DEAD, slots=4))
        late = Late(watch.fleet.server)
        await watch.dispatcher(evict=late)
        await watch.fleet.advance("6s")
        assert watch.lost["first"] == [DEAD]

        async with MemoryBroker(watch.fleet.server, name=DEAD) as again:
            await again.declare(agent_queues(DEAD, slots=4) + bounded)
            await again.consume(routing.mailbox_queue(DEAD), lambda mail: mail.ack(), prefetch=10)
            while watch.fleet.elapsed_seconds < SWEEP_SECONDS - 1:
                await watch.fleet.registry.register(registration, IDLE, lease_seconds=LEASE_SECONDS)
                await watch.fleet.advance("500ms")
            late.began = asyncio.get_running_loop().time()
            for body in (b"first", b"second"):
                await broker.publish(Message(body=body), exchange=routing.AGENTS, routing_key=DEAD)
            await watch.fleet.registry.deregister(DEAD)
            await again.unbind(inbox_binding(DEAD))
            await again.delete_queue(routing.mailbox_queue(DEAD))
        await watch.fleet.advance("9s")

        assert left_of(watch, DEAD) == [routing.inbox_queue(DEAD)]


@pytest.mark.parametrize("back", [True, False])
async def test_instant_of_an_agent_that_is_back_and_an_old_one_are_forgotten_or_noted_again(back: bool) -> None:
    async with open_watch([Sleepers().agent]) as watch:
        agent = watch.fleet.agents[0].id
        old_ms = await watch.fleet.registry.now_ms() - (0 if back else MAILBOX_EXPIRES_MS)
        await watch.database.run(lambda tr: tr.set(UNBOUND.pack((agent,)), write_counter(old_ms)))
        if not back:
            watch.fleet.kill(agent)
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{LEASE_SECONDS + 3}s")

        noted = await watch.database.read(lambda tr: tr.get_range(*UNBOUND.range()))
        assert [read_counter(value) > old_ms for _, value in noted] == ([] if back else [True])


@pytest.mark.parametrize("killed", [True, False])
async def test_inbox_is_unbound_before_the_mailbox_is_deleted(killed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, unbind, delete = list[tuple[str, str]](), MemoryServer.unbind, MemoryServer.delete_queue

    def unbound(server: MemoryServer, binding: Binding) -> None:
        steps.append(("unbind", binding.queue))
        unbind(server, binding)

    def deleted(server: MemoryServer, queue: str) -> None:
        steps.append(("delete", queue))
        delete(server, queue)

    monkeypatch.setattr(MemoryServer, "unbind", unbound)
    monkeypatch.setattr(MemoryServer, "delete_queue", deleted)
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("2s")
        one = watch.fleet.agents[0].id
        watch.fleet.kill(one) if killed else await watch.fleet.drain(one)
        await watch.fleet.advance(f"{FOUND_SECONDS + SUSPECT_SECONDS}s")

    first, second = ("unbind", routing.inbox_queue(one)), ("delete", routing.mailbox_queue(one))
    assert steps.index(first) < steps.index(second)


async def test_dispatcher_ends_while_more_dead_agents_than_are_looked_at_together_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = list[Binding]()

    async def hangs(_: MemoryBroker, binding: Binding) -> None:
        begun.append(binding)
        await asyncio.Event().wait()

    async with open_watch([Sleepers().agent]) as watch:
        for number in range(FEW + 5):
            async with MemoryBroker(watch.fleet.server, name="dead") as broker:
                await broker.declare(agent_queues(AgentId(f"dead-{number}"), slots=4))
        monkeypatch.setattr(MemoryBroker, "unbind", hangs)
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")
        together = len(begun)
        await watch.end("first")
        gc.collect()  # a step that was made and never taken would be told now, which fails a test

    assert together == FEW


async def taken(broker: MemoryBroker, queue: Queue) -> bytes:
    message = await broker.get(queue.name)
    assert message is not None
    message.ack()
    return message.message.body


@pytest.mark.parametrize("evicts", [True, False])
async def test_store_keeps_nothing_of_an_inbox_that_is_deleted_or_that_nobody_can_count(evicts: bool) -> None:
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server if evicts else None)
        await watch.fleet.advance("2s")
        dead = watch.fleet.agents[0].id
        watch.fleet.kill(dead)
        while not watch.lost["first"]:
            await watch.fleet.advance("100ms")
        await watch.fleet.advance(f"{2 * SWEEP_SECONDS + FOUND_SECONDS}s")

        assert left_of(watch, dead) == ([] if evicts else [routing.inbox_queue(dead)])
        assert await watch.database.read(lambda tr: tr.get_range(*UNBOUND.range())) == []
