"""The client of Coditect's side: the public `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.programs.driver import RESULT_SECONDS, WINDOW, Load, check
from benchmarks.programs.workload import COUNT, Echo, echo_capability
from coditect import Client


class CoditectDriver:
    """The driver of Coditect's public client."""

    def __init__(self, client: Client, load: Load) -> None:
        self._client = client
        self._text = load.text
        self._capabilities = [echo_capability(number) for number in range(load.capabilities)]

    async def burst(self, tasks: int) -> None:
        """Submit tasks, spread over the capabilities, as `Driver.burst`, and check every result."""
        if len(self._capabilities) == 1:
            await self._burst(self._capabilities[0], range(tasks), WINDOW)
            return
        many = len(self._capabilities)
        async with asyncio.TaskGroup() as group:
            for first, capability in enumerate(self._capabilities):
                group.create_task(self._burst(capability, range(first, tasks, many), max(1, WINDOW // many)))

    async def _burst(self, capability: str, numbers: range, window: int) -> None:
        values = (Echo(number, self._text) for number in numbers)
        handles = [handle async for handle in self._client.submit_many(capability, values, concurrency=window)]
        for number, handle in zip(numbers, handles, strict=True):
            check(number, self._text, await handle.result(timeout=RESULT_SECONDS))

    async def single(self, number: int) -> None:
        """Submit a task and check its result, as `Driver.single`."""
        handle = await self._client.submit(self._capabilities[0], Echo(number, self._text))
        check(number, self._text, await handle.result(timeout=RESULT_SECONDS))

    async def forget(self, tasks: int) -> None:
        """Submit tasks that want no result, as `Driver.forget`."""
        values = (Echo(number, self._text) for number in range(tasks))
        async for _ in self._client.submit_many(COUNT, values, concurrency=WINDOW, results=False):
            pass


@asynccontextmanager
async def open_driver(load: Load) -> AsyncIterator[CoditectDriver]:
    """Yield a client of the servers that the environment names."""
    async with Client.from_env() as client:
        yield CoditectDriver(client, load)
