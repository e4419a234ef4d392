"""A task that kills the process that runs it, in a fleet of one agent that is started again each time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coditect.aio.supervisor import Supervisor
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import base_topology, capability_queues
from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.errors import TaskFailed
from coditect.local import PrivateServers
from coditect.model.capability import Priority
from coditect.wire import routing
from coditect.wire.json import loads
from tests.fleet import taken
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.support import eventually

pytestmark = pytest.mark.servers

CAPABILITY = "poison.work"
QUEUE = routing.task_queue(CAPABILITY, Priority.P1)
PROGRAM = str(Path(__file__).with_name("poison_program.py"))


@dataclass(slots=True)
class Supervised:
    """One agent process at a time, and how those before it ended."""

    fleet: Fleet
    deaths: list[int] = field(default_factory=list)

    async def keep(self, **environment: str) -> None:
        """Starts the next one whenever one has ended."""
        while True:
            process = self.fleet.begin("coditect", "agent", "run", PROGRAM, **environment)  # may die before it is ready
            self.deaths.append(await asyncio.to_thread(process.wait))

    def runs(self, handle: Handle) -> list[tuple[str, str]]:
        """Attempt and process of each start of a task."""
        started = ["start", handle.task_id]
        return [(attempt, pid) for *what, attempt, pid in self.fleet.effects() if what == started]

    @property
    def agents(self) -> set[str]:
        """Processes that were agents."""
        return {str(process.pid) for process in self.fleet.processes}


@asynccontextmanager
async def supervised(servers: PrivateServers, folder: Path, **environment: str) -> AsyncIterator[Supervised]:
    async with Supervisor() as background, open_fleet(servers, folder) as fleet:
        opened = Supervised(fleet)
        keeping = background.start(opened.keep(**environment), name="supervisor")
        try:
            yield opened
        finally:
            keeping.cancel()
            fleet.end()


async def prepared(broker: AmqpBroker) -> None:
    """The queues are there before any agent."""
    await broker.declare(base_topology() + capability_queues(CAPABILITY))


async def answered(handles: list[Handle]) -> list[object]:
    """The values, all of them attempts."""
    return [await handle.result(timeout="100s") for handle in handles]


async def failure(handle: Handle) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        await handle.result(timeout="100s")
    return caught.value


async def mixed(client: Client, poison: str, ordinary: int) -> tuple[Handle, list[Handle]]:
    """One poison in the midst of the others."""
    before = [await client.submit(CAPABILITY, "work") for _ in range(ordinary // 10)]
    killer = await client.submit(CAPABILITY, poison)
    return killer, before + [await client.submit(CAPABILITY, "work") for _ in range(ordinary - len(before))]


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        ("exit", "exit_code=7"),
        pytest.param("kill", "signal='SIGKILL'", marks=pytest.mark.endurance),
        pytest.param("crash", "signal='SIGSEGV'", marks=pytest.mark.endurance),
    ],
)
async def test_poison_kills_two_agents_at_most_and_no_neighbour_pays(
    own_servers: PrivateServers, tmp_path: Path, poison: str, said: str
) -> None:
    async with client_of(own_servers) as client, AmqpBroker(own_servers.amqp_url, name="observer") as observer:
        await prepared(observer)
        killer, others = await mixed(client, poison, 200)
        async with supervised(own_servers, tmp_path) as fleet:
            values = await answered(others)
            error = await failure(killer)
            deaths, runs, agents = list(fleet.deaths), fleet.runs(killer), fleet.agents
        letters = await taken(observer, routing.dead_queue(CAPABILITY))

    assert values == [1] * 200, "nobody lost an attempt"
    assert 1 <= len(deaths) <= 2
    assert (error.facts["reason"], error.facts["attempt"]) == ("process_died", 3)
    assert [letter.message_id for letter in letters] == [killer.task_id]
    assert letters[0].reason == "process_died"
    errors = loads(str(letters[0].headers["x-coditect-errors"]).encode())
    assert [one["attempt"] for one in errors] == [1, 2, 3]
    assert all(said in one["message"] for one in errors)
    in_agents = [attempt for attempt, pid in runs if pid in agents]
    assert in_agents == ["1"] * len(deaths), "no agent ran it again"
    assert Counter(attempt for attempt, pid in runs if pid not in agents) == {"1": 1, "2": 1, "3": 1}


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        ("term", "signal='SIGTERM'"),
        ("cancel", ""),
        pytest.param("interrupt", "", marks=pytest.mark.endurance),
    ],
)
async def test_task_that_ends_its_agent_in_an_orderly_way_ends_few_and_then_runs_isolated(
    own_servers: PrivateServers, tmp_path: Path, poison: str, said: str
) -> None:
    async with (
        supervised(own_servers, tmp_path, CODITECT_DRAIN_SECONDS="0.5", CODITECT_BEAT_SECONDS="0.5") as agents,
        AmqpBroker(own_servers.amqp_url) as broker,
        client_of(own_servers) as client,
    ):
        await prepared(broker)
        killer, others = await mixed(client, poison, 40)

        error = await failure(killer)
        assert sorted(map(str, await answered(others))) == ["1"] * len(others)

    assert 2 <= len(agents.deaths) <= 4, "the agents that it ended"
    assert said in f"{error} {error.facts}"


@pytest.mark.parametrize("poison", ["stop", "leave"])
async def test_handler_that_stops_the_event_loop_ends_nothing(
    own_servers: PrivateServers, tmp_path: Path, poison: str
) -> None:
    async with (
        supervised(own_servers, tmp_path) as agents,
        AmqpBroker(own_servers.amqp_url) as broker,
        client_of(own_servers) as client,
    ):
        await prepared(broker)
        killer, others = await mixed(client, poison, 20)

        assert sorted(map(str, await answered(others))) == ["1"] * len(others)
        if poison == "stop":
            assert await killer.result(timeout="100s") == 1
        else:
            assert (await failure(killer)).facts["type"] == "SystemExit"
        assert agents.deaths == []


@pytest.mark.endurance
@pytest.mark.parametrize("capability", ["poison.deaf", "poison.blocked"])
async def test_handler_that_outlives_its_attempt_costs_a_restart_and_no_neighbor(
    own_servers: PrivateServers, tmp_path: Path, capability: str
) -> None:
    async with supervised(own_servers, tmp_path, CODITECT_SLOTS="2") as agents, client_of(own_servers) as client:
        await eventually(lambda: agents.fleet.processes and "is ready" in agents.fleet.logs(), seconds=60)
        stuck = [await client.submit(capability) for _ in range(3)]
        assert [(await failure(handle)).facts["reason"] for handle in stuck] == ["timeout"] * 3
        others = [await client.submit(CAPABILITY, "work") for _ in range(20)]
        assert await answered(others) == [1] * 20
        assert agents.deaths, "the agent was replaced"
        assert set(agents.deaths) == {1}
        assert "A handler outlives its attempt" in agents.fleet.logs()
