"""Graphs through Dask's scheduler, which keeps all in memory: its processes, and the client that drives them.

`python -m benchmarks.programs.dask_graphs PART` runs the `scheduler` or a `worker` until SIGTERM. The scheduler's
address is in the Redis that the environment names.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from distributed import Client, Scheduler, Worker
from redis.asyncio import Redis

from benchmarks.programs.graphs import TEXT, Graph, check_sinks
from coditect.aio.launch import tell_ready
from coditect.aio.loop import run_loop

ADDRESS = "bench:dask"
"""The key of the scheduler's address in Redis."""


def echo(number: int, text: str, *before: object) -> dict[str, object]:
    """Return the input unchanged: the no-op node of Dask's side."""
    return {"number": number, "text": text}


class DaskRunner:
    """The runner of graphs through Dask."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, graph: Graph) -> None:
        """Run a graph as `GraphRunner.run`: as a dictionary of tasks, under names that no run before had."""
        name = uuid.uuid4().hex
        tasks: dict[str, tuple[Any, ...]] = {
            f"{name}-{node.number}": (echo, node.number, TEXT, *(f"{name}-{before}" for before in node.after))
            for layer in graph.layers()
            for node in layer
        }
        futures = self._client.get(tasks, [f"{name}-{number}" for number in graph.sinks], sync=False)
        check_sinks(graph, await self._client.gather(futures))


@asynccontextmanager
async def open_runner() -> AsyncIterator[DaskRunner]:
    """Yield a client of the scheduler."""
    async with Client(await _address(), asynchronous=True) as client:
        yield DaskRunner(client)


async def _address() -> str:
    async with Redis.from_url(os.environ["CODITECT_REDIS_URL"], decode_responses=True) as redis:
        return str(await redis.get(ADDRESS))


async def serve(part: str) -> None:
    """Run the scheduler or a worker until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    if part == "scheduler":
        server: Any = Scheduler(host="127.0.0.1", port=0, dashboard=False)
    else:
        server = Worker(await _address(), host="127.0.0.1", nthreads=1, dashboard=False)
    async with server:
        if part == "scheduler":
            async with Redis.from_url(os.environ["CODITECT_REDIS_URL"]) as redis:
                await redis.set(ADDRESS, server.address)
        tell_ready()
        await stopped.wait()


if __name__ == "__main__":
    run_loop(serve(sys.argv[1]))
