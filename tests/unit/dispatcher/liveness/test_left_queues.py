"""The queues that dead agents leave at the broker, and the leader's looks for them."""

from __future__ import annotations

import asyncio

import pytest

from coditect.broker.management import ManagementUnavailable
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import Queue, QueueType, Topology, agent_queues
from coditect.errors import Unroutable
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import Load, Registration
from coditect.registry.memory import MemoryRegistry
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.liveness import left_queues
from dispatcher.liveness.eviction import Evictor
from dispatcher.liveness.monitor import AGAIN_SECONDS, REGISTER_SECONDS, SWEEP_SECONDS, Monitor
from dispatcher.liveness.roster import SUSPECT_SECONDS
from tests.unit.dispatcher.liveness.watch import Watch, open_watch
from tests.unit.registry.samples import IDLE, make_registration
from tests.unit.testing.workers import Sleepers

LEASE_SECONDS = 3.0
FOUND_SECONDS = 2 * REGISTER_SECONDS + sum(left_queues.COUNT_PAUSES) + 2.0
"""So long after a dispatcher's start a dead agent's queues are gone."""


LIFE_SECONDS = 4.0
"""The life of a dispatcher amid many faults."""


class Unlisted:
    """An evictor that cannot list queues at first, or that cannot count messages at first."""

    def __init__(self, server: MemoryServer, failures: int = 0, *, uncounted: int = 0) -> None:
        self._server = server
        self.failures = failures
        self.uncounted = uncounted

    async def evict(self, process: str) -> int:
        return await self._server.evict(process)

    async def queues(self) -> frozenset[str]:
        if self.failures:
            self.failures -= 1
            raise ManagementUnavailable("The broker's management API does not answer")
        return await self._server.queues()

    async def messages(self, queue: str) -> int | None:
        if self.uncounted:
            self.uncounted -= 1
            if self.uncounted % 2:
                raise ManagementUnavailable("The broker's management API does not answer")
            return None
        return await self._server.messages(queue)


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
async def test_queues_of_an_agent_that_died_unseen_are_removed(mail: bool) -> None:
    async with open_watch([Sleepers().agent]) as watch:
        dead = await die_unseen(watch)
        if not mail:
            async with MemoryBroker(watch.fleet.server, name="before") as broker:
                await broker.delete_queue(routing.mailbox_queue(dead))

        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{FOUND_SECONDS}s")
        soon = left_of(watch, dead)
        await watch.fleet.advance(f"{SUSPECT_SECONDS}s")

        assert (soon, watch.queues(dead)) == ([], [])
        assert watch.told("agent.offline") == watch.lost["first"] == ([dead] if mail else [])
        assert [len(watch.queues(living.id)) for living in watch.fleet.agents] == [4]


async def test_answers_that_nobody_will_read_go_with_a_dead_agent() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        dead = await die_unseen(watch)
        async with MemoryBroker(watch.fleet.server, name="late") as broker:
            await broker.publish(Message(body=b"1"), exchange=routing.REPLIES, routing_key=f"reply.{dead}")

        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert left_of(watch, dead) == []


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


async def test_queues_are_looked_for_again_when_they_could_not_be_listed() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        dead = await die_unseen(watch)
        await watch.dispatcher(evict=Unlisted(watch.fleet.server, failures=2))

        await watch.fleet.advance(f"{FOUND_SECONDS + 2 * AGAIN_SECONDS}s")

        assert left_of(watch, dead) == []


async def test_inbox_is_removed_when_its_messages_could_not_be_counted_at_first() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        dead = await die_unseen(watch)
        await watch.dispatcher(evict=Unlisted(watch.fleet.server, uncounted=3))

        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert left_of(watch, dead) == []


async def test_queues_of_an_agent_that_dies_later_and_unseen_are_found_within_the_minute() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("5s")
        async with MemoryBroker(watch.fleet.server, name="short-lived") as broker:
            await broker.declare(agent_queues(AgentId("short-lived"), slots=1))

        await watch.fleet.advance(f"{SWEEP_SECONDS + FOUND_SECONDS}s")

        assert left_of(watch, AgentId("short-lived")) == []


async def test_next_leader_removes_the_queues_that_a_leader_did_not_live_to_remove(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_watch([Sleepers().agent]) as watch:
        monkeypatch.setattr(left_queues, "TIDY_PAUSES", (1_000.0,))
        await watch.dispatcher("first", evict=watch.fleet.server)
        await watch.dispatcher("second", evict=watch.fleet.server)
        await watch.fleet.advance("1s")
        dead = watch.fleet.agents[0].id
        watch.fleet.kill(dead)
        await watch.fleet.advance(f"{LEASE_SECONDS + 3}s")
        assert (watch.lost["second"], len(watch.queues(dead))) == ([dead], 4)

        monkeypatch.setattr(left_queues, "TIDY_PAUSES", (0.0,))
        await watch.end("first")
        await watch.fleet.advance(f"{FOUND_SECONDS}s")

        assert watch.queues(dead) == []


async def test_leaders_that_live_for_seconds_remove_an_inbox_together() -> None:
    async with open_watch([Sleepers().agent]) as watch:
        dead = await die_unseen(watch)
        lives = round(left_queues.KNOWN_SECONDS / LIFE_SECONDS) + 2
        left = list[list[str]]()
        for owner in map(str, range(lives)):
            await watch.dispatcher(owner, evict=watch.fleet.server)
            await watch.fleet.advance(f"{LIFE_SECONDS}s")
            await watch.end(owner)
            left.append(left_of(watch, dead))

        assert left[0] == [routing.inbox_queue(dead)]
        assert left[-1] == []


async def test_dead_agent_s_queues_but_its_inbox_are_removed_without_a_pause_when_they_are_empty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(left_queues, "TIDY_PAUSES", (left_queues.TIDY_PAUSES[0], 1_000.0))
    async with open_watch([Sleepers().agent]) as watch:
        await watch.dispatcher(evict=watch.fleet.server)
        await watch.fleet.advance("2s")
        dead = watch.fleet.agents[0].id
        watch.fleet.kill(dead)
        while not watch.lost["first"]:
            await asyncio.sleep(0.05)
        await watch.fleet.advance("100ms")

        assert watch.queues(dead) == [routing.inbox_queue(dead)]


async def test_sweeps_never_overlap_however_often_the_lead_changes(monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with open_watch([Sleepers().agent]) as watch:
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


async def test_agent_that_registers_again_within_a_beat_keeps_its_queues() -> None:
    async with open_watch([Sleepers().agent]) as watch:
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
