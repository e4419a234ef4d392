"""`coditect api` on a real broker: two hundred streams hear of each task in time, and hold up no stop."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from httpx2 import URL

from coditect import Agent
from tests.fleet import running
from tests.integration.api.test_api_program import served
from tests.servers import Servers
from tests.support import eventually, patient

pytestmark = pytest.mark.servers

STREAMS = 200
EVENTS = 60
EVERY_SECONDS = 0.04
P99_SECONDS = 0.25


class Follower:
    """One stream, read without a library, with the delay of each event."""

    def __init__(self, reader: asyncio.StreamReader, kind: str) -> None:
        self.kind = kind
        self.delays: list[float] = []
        self.numbers: list[int] = []
        self.ended = asyncio.Event()
        self._reader = reader

    async def run(self) -> None:
        named = ""
        while line := await self._reader.readline():
            if line.startswith(b"event: "):
                named = line[7:].decode().strip()
            elif line.startswith(b"data: ") and not named:
                document = json.loads(line[6:])
                if document["type"] == self.kind:
                    self.delays.append(time.time() - document["data"]["sent"])
                    self.numbers.append(document["data"]["number"])
            elif line == b"\n":
                named = ""
        self.ended.set()


@asynccontextmanager
async def following(url: URL, kind: str) -> AsyncIterator[list[Follower]]:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        followers = []
        for _ in range(STREAMS):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            stack.callback(writer.close)
            writer.write(f"GET /v1/events?kind={kind} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n\r\n".encode())
            async with asyncio.timeout(30):
                await reader.readuntil(b": ping\n")
            followers.append(Follower(reader, kind))
        for one in followers:
            tasks.create_task(one.run())
        yield followers


@pytest.mark.proof
async def test_two_hundred_streams_hear_of_each_event_in_time_and_hold_up_no_stop(
    servers: Servers, tmp_path: Path
) -> None:
    kind = f"test{uuid4().hex[:8]}.happened"
    async with (
        running(Agent("idle"), servers) as fleet,
        served(servers, tmp_path) as api,
        following(api.http.base_url, kind) as followers,
    ):
        program = api.process
        for number in range(EVENTS):
            await fleet.client.emit(kind, number=number, sent=time.time())
            await asyncio.sleep(EVERY_SECONDS)
        await eventually(lambda: all(len(one.numbers) == EVENTS for one in followers))
        began = time.monotonic()
        program.send_signal(signal.SIGTERM)
        await program.wait()
        took = time.monotonic() - began

    assert all(one.numbers == list(range(EVENTS)) for one in followers)
    delays = sorted(delay for one in followers for delay in one.delays)
    p50, p99 = delays[len(delays) // 2], delays[len(delays) * 99 // 100]
    print(f"{STREAMS} streams, {EVENTS} events: p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms; stop {took:.2f} s")
    assert p99 < patient(P99_SECONDS)
    assert program.returncode == 0
    assert took < patient(2.0)
