"""The queues that dead agents leave at the broker: looked for by the leader, and deleted when they surely are empty."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace

import pytest

from coditect.broker.management import ManagementUnavailable
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.memory.queue import DEAD_LETTER_RETRY_SECONDS
from coditect.broker.memory.server import Exchanges
from coditect.broker.topology import (
    MAILBOX_EXPIRES_MS,
    Binding,
    Queue,
    QueueType,
    Topology,
    agent_queues,
    inbox_binding,
)
from coditect.errors import Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import Load, Registration
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from dispatcher.ledger.keyspace import UNBOUND
from dispatcher.ledger.ownership import leases
from dispatcher.liveness import eviction
from dispatcher.liveness.eviction import CHECKED_TOGETHER, Evictor
from dispatcher.liveness.monitor import REGISTER_SECONDS, SUSPECT_SECONDS, SWEEP_RETRY_SECONDS, SWEEP_SECONDS, Monitor
from dispatcher.store.transaction import read_counter, write_counter
from tests.unit.dispatcher.liveness.watch import ServerEvictor, Watch, open_watch
from tests.unit.registry.samples import IDLE, make_registration
from tests.unit.testing.workers import Sleepers

LEASE_SECONDS = 3.0
FOUND_SECONDS = 2 * REGISTER_SECONDS + sum(eviction.COUNT_PAUSES) + 2.0
"""So long after a dispatcher's start a dead agent's queues are gone."""


LIFE_SECONDS = 4.0
"""The life of a dispatcher amid many faults."""


class Unlisted(ServerEvictor):
    """An evictor that cannot list queues at first, or that cannot count messages at first."""

    def __init__(self, server: MemoryServer, failures: int = 0, *, uncounted: int = 0) -> None:
        super().__init__(server)
        self.failures = failures
        self.uncounted = uncounted

    async def queues(self) -> frozenset[str]:
        if self.failures:
            self.failures -= 1
            raise ManagementUnavailable("The broker's management API does not answer")
        return await super().queues()

    async def messages(self, queue: str) -> int | None:
        if self.uncounted:
            self.uncounted -= 1
            if self.uncounted % 2:
                raise ManagementUnavailable("The broker's management API does not answer")
            return None
        return await super().messages(queue)


async def die_unseen(watch: Watch) -> AgentId:
    """An agent dies, and the registry has forgotten it when a dispatcher begins to watch."""
    dead = watch.fleet.agents[0].id
    watch.fleet.kill(dead)
    await watch.fleet.advance(f"{LEASE_SECONDS + 1}s")
    assert len(watch.queues(dead)) == 4
    return dead


def left_of(watch: Watch, agent: AgentId) -> list[str]:
    """What is left of the agent's queues, but for its mailbox, which stays until the agent counts as gone."""
    return [queue for queue in watch.queues(agent) if queue != routing.mailbox_queue(agent)]


@pytest.mark.parametrize("mail", [True, False], ids=["all", "without a mailbox"])
async def test_queues_of_an_agent_that_died_unseen_are_removed_with_unread_answers(watch: Watch, mail: bool) -> None:
    dead = await die_unseen(watch)
    async with MemoryBroker(watch.fleet.server, name="before") as broker:
        await broker.publish(Message(body=b"1"), exchange=routing.REPLIES, routing_key=routing.agent_replies(dead))
        if not mail:
            await broker.delete_queue(routing.mailbox_queue(dead))
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance(f"{FOUND_SECONDS}s")
    soon = left_of(watch, dead)
    await watch.fleet.advance(f"{SUSPECT_SECONDS}s")

    assert (soon, watch.queues(dead)) == ([], [])
    assert watch.told("agent.offline") == watch.lost["first"] == ([dead] if mail else [])
    assert [len(watch.queues(living.id)) for living in watch.fleet.agents] == [4]


async def test_queues_of_dead_dispatchers_are_removed_and_those_of_the_living_and_of_clients_stay() -> None:
    owners = ("dispatcher-1-0123abcd", "dispatcher-2-0123abcd", "dispatcher-of-a-client.1")
    queues = [f"{kind}{owner}" for owner in owners for kind in ("reply.monitor-", "reply.pings-", "events.")]
    queues = [*queues[:6], f"reply.{owners[2]}", f"events.{owners[2]}"]
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="old") as broker:
        await broker.declare(Topology(queues=tuple(Queue(name, QueueType.CLASSIC) for name in queues)))
        await watch.database.run(lambda tr: leases.renew(tr, owners[1], 1))

        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert [name for name in queues if watch.fleet.server.find(name)] == queues[3:]


@pytest.mark.parametrize(("failures", "uncounted"), [(2, 0), (0, 3)], ids=["unlisted", "uncounted"])
async def test_queues_that_are_listed_or_counted_late_are_removed(watch: Watch, failures: int, uncounted: int) -> None:
    dead = await die_unseen(watch)
    await watch.dispatcher(evict=Unlisted(watch.fleet.server, failures, uncounted=uncounted))
    await watch.fleet.advance(f"{FOUND_SECONDS + failures * SWEEP_RETRY_SECONDS}s")

    assert left_of(watch, dead) == []


async def test_queues_of_an_agent_that_dies_later_and_unseen_are_found_within_the_minute(watch: Watch) -> None:
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("5s")
    async with MemoryBroker(watch.fleet.server, name="short-lived") as broker:
        await broker.declare(agent_queues(AgentId("short-lived"), slots=1))

    await watch.fleet.advance(f"{SWEEP_SECONDS + FOUND_SECONDS}s")

    assert left_of(watch, AgentId("short-lived")) == []


async def test_next_leader_removes_the_queues_that_a_leader_left(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "TIDY_PAUSES", (1_000.0,))
    await watch.dispatcher("first", evict=watch.fleet.server)
    await watch.dispatcher("second", evict=watch.fleet.server)
    await watch.fleet.advance("1s")
    dead = watch.fleet.agents[0].id
    watch.fleet.kill(dead)
    await watch.fleet.advance(f"{LEASE_SECONDS + 3}s")
    assert (watch.lost["second"], len(watch.queues(dead))) == ([dead], 4)

    monkeypatch.setattr(eviction, "TIDY_PAUSES", (0.0,))
    await watch.end("first")
    await watch.fleet.advance(f"{FOUND_SECONDS}s")

    assert watch.queues(dead) == []


async def test_leaders_that_live_for_seconds_remove_an_inbox_together(watch: Watch) -> None:
    dead = await die_unseen(watch)
    lives = round(eviction.COUNT_KNOWN_SECONDS / LIFE_SECONDS) + 2
    left = list[list[str]]()
    for owner in map(str, range(lives)):
        await watch.dispatcher(owner, evict=watch.fleet.server)
        await watch.fleet.advance(f"{LIFE_SECONDS}s")
        await watch.end(owner)
        left.append(left_of(watch, dead))

    assert left[0] == [routing.inbox_queue(dead)]
    assert left[-1] == []


async def test_empty_queues_of_a_dead_agent_are_removed_at_once(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "TIDY_PAUSES", (eviction.TIDY_PAUSES[0], 1_000.0))
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("2s")
    dead = watch.fleet.agents[0].id
    watch.fleet.kill(dead)
    while not watch.lost["first"]:
        await asyncio.sleep(0.05)
    await watch.fleet.advance("100ms")

    assert watch.queues(dead) == [routing.inbox_queue(dead)]


async def test_sweeps_never_overlap_whoever_leads(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign, sweep, under_way = Monitor._campaign, Monitor._sweep, list[int]()
    running = 0

    async def lost_and_won(monitor: Monitor) -> None:
        monitor._lease = None
        await campaign(monitor)

    async def counted(monitor: Monitor, evict: Evictor) -> None:
        nonlocal running
        running += 1
        under_way.append(running)
        await sweep(monitor, evict)
        running -= 1

    monkeypatch.setattr(Monitor, "_campaign", lost_and_won)
    monkeypatch.setattr(Monitor, "_sweep", counted)
    await die_unseen(watch)
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance(f"{2 * FOUND_SECONDS}s")

    assert len(under_way) > 1
    assert set(under_way) == {1}


async def test_agent_registers_before_it_has_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    registered, declared = set[AgentId](), dict[AgentId, bool]()
    register, declare = MemoryRegistry.register, MemoryServer.declare

    async def noted(registry: MemoryRegistry, registration: Registration, load: Load, *, lease_seconds: float) -> None:
        await register(registry, registration, load, lease_seconds=lease_seconds)
        registered.add(registration.agent_id)

    def looked(server: MemoryServer, topology: Topology) -> None:
        for owner in (routing.owner_of(one.name) for one in topology.queues if one.name.startswith("agent.")):
            declared.setdefault(AgentId(owner), owner in registered)
        declare(server, topology)

    monkeypatch.setattr(MemoryRegistry, "register", noted)
    monkeypatch.setattr(MemoryServer, "declare", looked)
    async with open_watch([Sleepers().agent], replicas=2):
        pass

    assert len(declared) == 2
    assert all(declared.values())


async def test_agent_that_registers_again_within_a_beat_keeps_its_queues(watch: Watch) -> None:
    registration = make_registration()
    starting = registration.agent_id
    async with MemoryBroker(watch.fleet.server, name=starting) as broker:
        await broker.declare(agent_queues(starting, slots=1))
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{REGISTER_SECONDS - 0.5}s")
        for _ in range(40):
            await watch.fleet.registry.register(registration, IDLE, lease_seconds=LEASE_SECONDS)
            await watch.fleet.advance("500ms")

    assert len(watch.queues(starting)) == 3
    assert watch.lost["first"] == []


async def test_program_that_consumes_an_agent_s_queues_and_neither_registers_nor_answers_keeps_them() -> None:
    mute = AgentId("mute")
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name=mute) as broker:
        await broker.declare(agent_queues(mute, slots=1))
        await broker.consume(routing.mailbox_queue(mute), lambda mail: mail.ack(), prefetch=10)
        monitor = await watch.dispatcher(evict=watch.fleet.server)

        await watch.fleet.advance(f"{SWEEP_SECONDS + FOUND_SECONDS}s")

        assert len(watch.queues(mute)) == 3
        assert (monitor.evicted, watch.lost["first"]) == (0, [])


async def test_living_agent_that_the_registry_does_not_list_keeps_its_queues() -> None:
    async with open_watch([Sleepers().agent], replicas=1) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        (living,) = (one.id for one in watch.fleet.agents)
        for _ in range(200):
            await watch.fleet.registry.deregister(living)
            await watch.fleet.advance("100ms")

        assert len(watch.queues(living)) == 4
        assert watch.lost["first"] == []


async def test_agent_that_is_back_and_binds_its_inbox_again_amid_the_removal_keeps_it() -> None:
    registration = make_registration()
    back, queues = registration.agent_id, agent_queues(registration.agent_id, slots=1)
    async with open_watch([Sleepers().agent]) as watch, MemoryBroker(watch.fleet.server, name="any") as broker:
        async with MemoryBroker(watch.fleet.server, name=back) as before:
            await before.declare(queues)
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{REGISTER_SECONDS + 1}s")
        with pytest.raises(Unroutable):
            await broker.publish(Message(body=b"early"), exchange=routing.AGENTS, routing_key=back)

        async with MemoryBroker(watch.fleet.server, name=back) as again:
            await again.declare(queues)
            for _ in range(2 * int(FOUND_SECONDS)):
                await watch.fleet.registry.register(registration, IDLE, lease_seconds=LEASE_SECONDS)
                await watch.fleet.advance("500ms")
        await broker.publish(Message(body=b"late"), exchange=routing.AGENTS, routing_key=back)

        assert routing.inbox_queue(back) in watch.queues(back)


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
async def test_noted_instant_is_forgotten_when_its_agent_is_back_and_renewed_when_old(watch: Watch, back: bool) -> None:
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
async def test_inbox_is_unbound_before_the_mailbox_goes(
    watch: Watch, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, unbind, delete = list[tuple[str, str]](), Exchanges.unbind, MemoryServer.delete_queue

    def unbound(exchanges: Exchanges, binding: Binding) -> None:
        steps.append(("unbind", binding.queue))
        unbind(exchanges, binding)

    def deleted(server: MemoryServer, queue: str) -> None:
        steps.append(("delete", queue))
        delete(server, queue)

    monkeypatch.setattr(Exchanges, "unbind", unbound)
    monkeypatch.setattr(MemoryServer, "delete_queue", deleted)
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("2s")
    one = watch.fleet.agents[0].id
    watch.fleet.kill(one) if killed else await watch.fleet.drain(one)
    await watch.fleet.advance(f"{FOUND_SECONDS + SUSPECT_SECONDS}s")

    first, second = ("unbind", routing.inbox_queue(one)), ("delete", routing.mailbox_queue(one))
    assert steps.index(first) < steps.index(second)


async def test_dispatcher_ends_while_many_dead_agents_wait(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = list[Binding]()

    async def hangs(_: MemoryBroker, binding: Binding) -> None:
        begun.append(binding)
        await asyncio.Event().wait()

    for number in range(CHECKED_TOGETHER + 5):
        async with MemoryBroker(watch.fleet.server, name="dead") as broker:
            await broker.declare(agent_queues(AgentId(f"dead-{number}"), slots=4))
    monkeypatch.setattr(MemoryBroker, "unbind", hangs)
    await watch.dispatcher(evict=watch.fleet.server)
    await watch.fleet.advance("5s")
    together = len(begun)
    await watch.end("first")
    gc.collect()  # a step that was made and never taken would be told now, which fails a test

    assert together == CHECKED_TOGETHER


async def taken(broker: MemoryBroker, queue: Queue) -> bytes:
    message = await broker.get(queue.name)
    assert message is not None
    message.ack()
    return message.message.body


@pytest.mark.parametrize("evicts", [True, False])
async def test_store_keeps_nothing_of_an_inbox_that_is_deleted_or_uncountable(watch: Watch, evicts: bool) -> None:
    await watch.dispatcher(evict=watch.fleet.server if evicts else None)
    await watch.fleet.advance("2s")
    dead = watch.fleet.agents[0].id
    watch.fleet.kill(dead)
    while not watch.lost["first"]:
        await watch.fleet.advance("100ms")
    await watch.fleet.advance(f"{2 * SWEEP_SECONDS + FOUND_SECONDS}s")

    assert left_of(watch, dead) == ([] if evicts else [routing.inbox_queue(dead)])
    assert await watch.database.read(lambda tr: tr.get_range(*UNBOUND.range())) == []
