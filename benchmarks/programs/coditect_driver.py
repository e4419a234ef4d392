"""Our side: the public `Client`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.programs.driver import RESULT_SECONDS, TEXT, WINDOW, check
from benchmarks.programs.workload import ECHO, Echo
from coditect import Client


class CoditectDriver:
    """See `Driver`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def burst(self, tasks: int) -> None:
        """See `Driver.burst`."""
        values = (Echo(number, TEXT) for number in range(tasks))
        handles = [handle async for handle in self._client.submit_many(ECHO, values, concurrency=WINDOW)]
        for number, handle in enumerate(handles):
            check(number, await handle.result(timeout=RESULT_SECONDS))

    async def single(self, number: int) -> None:
        """See `Driver.single`."""
        handle = await self._client.submit(ECHO, Echo(number, TEXT))
        check(number, await handle.result(timeout=RESULT_SECONDS))


@asynccontextmanager
async def coditect_driver() -> AsyncIterator[CoditectDriver]:
    """A client of the servers that the environment names."""
    async with Client.from_env() as client:
        yield CoditectDriver(client)
