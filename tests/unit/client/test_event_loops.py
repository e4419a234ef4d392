"""A client belongs to the event loop that opened it: elsewhere every use is one clear error, at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coditect import Client, Workflow
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.topology import base_topology, capability_queues
from coditect.errors import BrokerUnavailable, SetupError
from coditect.registry.memory import MemoryRegistry

Use = Callable[[Client], Awaitable[Any]]


async def _first(iterated: Any) -> Any:
    async for item in iterated:
        return item
    return None


async def _listened(client: Client) -> None:
    async with client.events("task.*"):
        pass


async def _locked(client: Client) -> None:
    async with client.lock("repo:x"):
        pass


async def _guarded(client: Client) -> None:
    async with client.breaker("github"):
        pass


async def _called(client: Client) -> None:
    async with client.breakers.call("github"):
        pass


def _flow() -> Workflow:
    flow = Workflow("one")
    flow.task("code.review", 1)
    return flow


USES: dict[str, Use] = {
    "submit": lambda client: client.submit("code.review", 1),
    "submit durable": lambda client: client.submit("code.review", 1, durable=True),
    "submit_many": lambda client: _first(client.submit_many("code.review", [1])),
    "request": lambda client: client.request("code.review", 1, timeout="1h"),
    "start": lambda client: client.start(_flow()),
    "cancel": lambda client: client.tasks.cancel("0000"),
    "agents": lambda client: client.agents.list(),
    "runs": lambda client: _first(client.workflows.list()),
    "state of a run": lambda client: client.workflows.get("0000").state(),
    "broadcast": lambda client: client.broadcast("topic"),
    "emit": lambda client: client.emit("a.b"),
    "events": _listened,
    "space": lambda client: client.state("team").get("plan"),
    "lock": _locked,
    "schedules": lambda client: _first(client.schedules.list()),
    "threads": lambda client: client.threads.get("0000").message(1),
    "breakers": lambda client: _first(client.breakers.list()),
    "breaker": _guarded,
    "call of a breaker": _called,
}
each_use = pytest.mark.parametrize("use", USES.values(), ids=USES)


class Opened:
    """A client that was opened in an event loop of its own and left open, and the broker that it is on."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.broker = MemoryBroker(self.server, name="client")
        self.client = Client(self.broker, MemoryRegistry())

    async def open(self) -> Client:
        await self.broker.__aenter__()
        return await self.client.__aenter__()


class Refusing:
    """A broker that is not there."""

    async def __aenter__(self) -> None:
        raise BrokerUnavailable("The broker cannot be reached")

    async def __aexit__(self, *_: object) -> None: ...


def refusal(use: Use, client: Client) -> str:
    async def used() -> str:
        with pytest.raises(SetupError) as refused:
            async with asyncio.timeout(10):
                await use(client)
        assert refused.value.facts["fix"]
        return refused.value.sentence

    return asyncio.run(used())


@each_use
def test_client_that_is_not_open_says_so(use: Use) -> None:
    assert refusal(use, Opened().client) == "The client is not open"


@each_use
def test_second_asyncio_run_is_refused(use: Use) -> None:
    opened = Opened()
    asyncio.run(opened.open())

    assert refusal(use, opened.client) == "The client's event loop has ended"


@each_use
async def test_loop_of_another_thread_is_refused(use: Use) -> None:
    async with MemoryBroker(MemoryServer(), name="client") as broker, Client(broker, MemoryRegistry()) as client:
        assert await asyncio.to_thread(refusal, use, client) == "The client is open in another event loop"


@each_use
async def test_closed_client_says_so(use: Use) -> None:
    async with MemoryBroker(MemoryServer(), name="client") as broker, Client(broker, MemoryRegistry()) as client:
        pass

    assert await asyncio.to_thread(refusal, use, client) == "The client is closed"


async def test_guarded_call_begins_in_the_loop_and_the_block_of_its_client() -> None:
    async with MemoryBroker(MemoryServer(), name="client") as broker, Client(broker, MemoryRegistry()) as client:
        call = client.breaker("github")
        elsewhere = await asyncio.to_thread(refusal, lambda _: call.__aenter__(), client)
        async with call:
            pass

    assert elsewhere == "The client is open in another event loop"
    with pytest.raises(SetupError, match="The client is closed"):
        await call.__aenter__()


async def test_client_that_is_opened_twice_stays_open() -> None:
    async with MemoryBroker(MemoryServer(), name="client") as broker, Client(broker, MemoryRegistry()) as client:
        with pytest.raises(SetupError, match="The client is open already"):
            await client.__aenter__()

        await client.emit("a.b")


@pytest.mark.parametrize("first", ["opened", "refused"])
def test_client_with_connections_of_its_own_is_opened_once(first: str) -> None:
    broker = MemoryBroker(MemoryServer(), name="client")
    client = Client(broker, MemoryRegistry())
    client._owned = (broker,) if first == "opened" else (Refusing(),)

    async def open_it() -> None:
        async with client:
            pass

    if first == "opened":
        asyncio.run(open_it())
    else:
        with pytest.raises(BrokerUnavailable):
            asyncio.run(open_it())
    with pytest.raises(SetupError, match="opened once") as refused:
        asyncio.run(open_it())

    assert "Client.from_env()" in str(refused.value.facts["fix"])


def test_client_is_not_closed_in_another_loop() -> None:
    opened = Opened()
    asyncio.run(opened.open())

    with pytest.raises(SetupError, match="event loop has ended"):
        asyncio.run(opened.client.__aexit__(None, None, None))


async def test_result_is_awaited_in_the_loop_that_submitted_the_task() -> None:
    server = MemoryServer()
    async with MemoryBroker(server, name="client") as broker, Client(broker, MemoryRegistry()) as client:
        await broker.declare(base_topology() + capability_queues("code.review"))
        handle = await client.submit("code.review", 1)
        streamed = await client.submit("code.review", 1, stream=True)

        wait = "The task was submitted in another event loop"
        assert await asyncio.to_thread(refusal, lambda _: handle.result(timeout="1h"), client) == wait
        assert await asyncio.to_thread(refusal, lambda _: _first(streamed.stream()), client) == wait


async def test_event_stream_is_read_inside_of_its_block() -> None:
    async with MemoryBroker(MemoryServer(), name="client") as broker, Client(broker, MemoryRegistry()) as client:
        assert (
            await asyncio.to_thread(refusal, lambda _: _first(client.events("#")), client)
            == "The event stream is not open"
        )
        async with client.events("#") as events:
            assert (
                await asyncio.to_thread(refusal, lambda _: anext(events), client)
                == "The event stream is open in another event loop"
            )
