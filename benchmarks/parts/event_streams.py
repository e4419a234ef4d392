"""The live events of the HTTP API: how late two hundred readers hear of each."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from benchmarks.figures import percentile
from benchmarks.parts.http_api import api
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client
from coditect.local.servers import free_ports

NAME = "event-streams"
STREAMS = 200
EVERY_SECONDS = 0.04
"""The time from one event to the next: 25 events a second, 5,000 messages to readers."""
MOST_MS = 250.0
KIND = "benchmark.happened"
WITHIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StreamDelays:
    """The measured figures of a run."""

    delays: tuple[float, ...]
    """The milliseconds from the call that publishes an event to the event in a reader's hand, of every reader."""


async def follow(port: int, stack: AsyncExitStack) -> asyncio.StreamReader:
    """Open a stream of the events of the benchmark, and return its reader when the API has it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    stack.callback(writer.close)
    writer.write(f"GET /v1/events?kind={KIND} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
    await reader.readuntil(b": ping\n")
    return reader


async def delays_of(reader: asyncio.StreamReader, count: int) -> list[float]:
    """Return the milliseconds that each of `count` events took to a stream's reader."""
    delays: list[float] = []
    while len(delays) < count:
        line = await reader.readline()
        if not line:
            raise ConnectionError("the API has ended a stream")
        if line.startswith(b"data: ") and b'"sent"' in line:
            delays.append((time.time() - json.loads(line[6:])["data"]["sent"]) * 1000)
    return delays


async def measure(stage: Stage, size: Size) -> StreamDelays:
    """Publish events at a steady pace to many readers."""
    (port,) = free_ports(1)
    count = size.round_trips // 4
    async with stage.running(api(port)), Client.connecting(stage.settings) as client, AsyncExitStack() as stack:
        readers = [await follow(port, stack) for _ in range(STREAMS)]
        async with asyncio.timeout(WITHIN_SECONDS + count * EVERY_SECONDS), asyncio.TaskGroup() as group:
            reading = [group.create_task(delays_of(reader, count)) for reader in readers]
            for number in range(count):
                await client.emit(KIND, number=number, sent=time.time())
                await asyncio.sleep(EVERY_SECONDS)
    return StreamDelays(tuple(delay for task in reading for delay in task.result()))


def verdicts(found: StreamDelays) -> tuple[Verdict, ...]:
    """Compare the delays with their bound."""
    return (Verdict(f"delay of {STREAMS} streams p99", percentile(found.delays, 99), Bound.BELOW, MOST_MS, "ms"),)


def figures(found: StreamDelays) -> tuple[Figure, ...]:
    """Return the middle and the worst of the delays."""
    shares = ((50, "p50"), (100, "the worst"))
    return tuple(
        Figure(f"delay of {STREAMS} streams, {name}", percentile(found.delays, share), "ms") for share, name in shares
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the streams of events, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
