from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from coditect.broker.management import Connection, Management, ManagementUnavailable
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import connection_names
from coditect.errors import SetupError
from dispatcher.liveness.eviction import ManagementEvictor, close_owner, evictor
from tests.unit.broker.virtual_time import in_virtual_time


class Listing(Management):
    """The management API of a broker with these connections."""

    def __init__(self, *connections: Connection) -> None:
        super().__init__("http://localhost")
        self.open_connections = list(connections)
        self.listed = 0
        self.down = False

    async def connections(self) -> tuple[Connection, ...]:
        self.listed += 1
        await asyncio.sleep(0.01)
        if self.down:
            raise ManagementUnavailable("The broker's management API does not answer")
        return tuple(self.open_connections)

    async def queues(self, vhost: str) -> frozenset[str]:
        if self.down:
            raise ManagementUnavailable("The broker's management API does not answer")
        return frozenset()

    async def close(self, connection: Connection, *, reason: str) -> bool:
        if connection not in self.open_connections:
            return False
        self.open_connections.remove(connection)
        return True


def connections_of(*processes: str) -> list[Connection]:
    return [Connection(f"{name}!", name) for process in processes for name in connection_names(process)]


@in_virtual_time
async def test_only_the_process_of_exactly_this_name_is_closed() -> None:
    api = Listing(*connections_of("worker-1", "worker-11", "my worker-1"), Connection("x", ""))

    assert await ManagementEvictor(api, "/").evict("worker-1") == 2

    assert api.open_connections == [*connections_of("worker-11", "my worker-1"), Connection("x", "")]


@in_virtual_time
async def test_many_at_once_share_listings_that_began_after_they_asked() -> None:
    names = [f"worker-{number}" for number in range(50)]
    api = Listing(*connections_of(*names))
    evict = ManagementEvictor(api, "/")

    closed = await asyncio.gather(*(evict.evict(name) for name in names))

    assert closed == [2] * 50
    assert api.listed <= 2
    assert api.open_connections == []


@in_virtual_time
async def test_many_at_once_share_the_failure_of_a_listing() -> None:
    api = Listing()
    api.down = True
    evict = ManagementEvictor(api, "/")

    failed = await asyncio.gather(*(evict.evict(f"worker-{number}") for number in range(50)), return_exceptions=True)
    api.down = False

    assert [type(one) for one in failed] == [ManagementUnavailable] * 50
    assert api.listed <= 2
    assert await evict.evict("worker-1") == 0


@pytest.mark.parametrize("asks_last", ["connections", "queues"])
@in_virtual_time
async def test_failure_is_told_once_and_its_end_once(asks_last: str, caplog: pytest.LogCaptureFixture) -> None:
    api = Listing()
    evict = ManagementEvictor(api, "/")
    with caplog.at_level(logging.INFO, "dispatcher.liveness.eviction"):
        for api.down in (True, True, True):
            for asked in (evict.evict("worker-1"), evict.queues()):
                with suppress(ManagementUnavailable):
                    await asked
        api.down = False
        for _ in range(2):
            await (evict.queues() if asks_last == "queues" else evict.evict("worker-1"))

    told = [one.levelno for one in caplog.records if one.name == "dispatcher.liveness.eviction"]
    assert told == [logging.WARNING, logging.INFO]


@in_virtual_time
async def test_former_owner_is_looked_for_twice_because_the_list_is_late() -> None:
    api = Listing()
    closing = asyncio.create_task(close_owner(ManagementEvictor(api, "/"), "ada"))
    await asyncio.sleep(1)
    api.open_connections += connections_of("ada")

    assert await closing == 2


class Hanging:
    async def evict(self, process: str) -> int:
        await asyncio.sleep(1_000)
        return 2

    async def queues(self) -> frozenset[str]:
        return frozenset()

    async def messages(self, queue: str) -> int | None:
        return None


@in_virtual_time
async def test_taking_over_never_fails_and_never_waits_for_ever() -> None:
    began = asyncio.get_running_loop().time()
    down = Listing()
    down.down = True

    assert await close_owner(None, "ada") == 0
    assert await close_owner(ManagementEvictor(down, "/"), "ada") == 0
    assert await close_owner(ManagementEvictor(down, "/"), "") == 0
    assert await close_owner(Hanging(), "ada") == 0

    assert asyncio.get_running_loop().time() - began < 20


@in_virtual_time
async def test_the_memory_broker_is_its_own_evictor() -> None:
    server = MemoryServer()
    async with MemoryBroker(server, name="worker-1") as doomed, MemoryBroker(server, name="worker-2") as other:
        assert await server.evict("worker-1") == 1

        assert (doomed.connected, other.connected) == (False, True)
        await asyncio.sleep(1)
        assert doomed.connected


def test_without_the_setting_there_is_no_evictor_and_a_wrong_one_is_refused() -> None:
    assert evictor(None, "/") is None
    with pytest.raises(SetupError):
        evictor("localhost", "/")
