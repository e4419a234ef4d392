"""The running of coroutines on a client's event loop, for a library that calls from that loop or from threads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from coditect.client.client import Client
from coditect.errors import SetupError
from coditect.sync.client import SyncClient

T = TypeVar("T")


class ClientLoop(Protocol):
    """The event loop of an open client."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and wait for its result; for callers in other threads."""

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and await its result in the caller's own loop."""


class RunningLoop:
    """The event loop of an async `Client`: the one that runs when this object is made."""

    def __init__(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError as error:
            fix = "make it inside of `async with Client...`, or give it a SyncClient: Client.sync()"
            raise SetupError("An async client is used where its event loop runs", fix=fix) from error

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and wait for its result; for callers in other threads.

        Raises:
            SetupError: in the loop's own thread, which would wait for itself, or when the loop runs no more.
        """
        if _running() is self._loop:
            work.close()
            fix = "use the async methods there, such as `graph.ainvoke`, or give it a SyncClient"
            raise SetupError("A blocking call cannot wait on the client's own event loop", fix=fix)
        return self._begun(work).result()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's event loop, and await its result, in that loop or in another.

        Raises:
            SetupError: when the loop runs no more.
        """
        if _running() is self._loop:
            return await work
        return await asyncio.wrap_future(self._begun(work))

    def _begun(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if not self._loop.is_running():  # nobody would ever do it
            work.close()
            raise SetupError("The client's event loop runs no more", fix="open a client, and make another one of it")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def within(client: Client | SyncClient) -> tuple[Client, ClientLoop]:
    """Return the async client of a `Client` or `SyncClient`, and the event loop on which it runs.

    Raises:
        SetupError: when an async client is given, and no event loop runs.
    """
    if isinstance(client, SyncClient):
        return client.inside()
    return client, RunningLoop()
