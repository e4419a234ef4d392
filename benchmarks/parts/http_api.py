"""The HTTP API beside one round trip of the direct lane, and what one of its processes reads in a second."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.figures import percentile
from benchmarks.parts.graph_sides import fleet
from benchmarks.programs.workload import ECHO, Echo
from benchmarks.size import Size
from benchmarks.stage import Program, Stage, python
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client
from coditect.local.servers import free_ports

NAME = "http-api"
WARM_UP = 100
ROUNDS = 10
"""The alternating rounds of the two sides; each has a share of `Size.round_trips`."""
READERS = 16
"""The connections that read at once."""
READS = {"agents": "/v1/agents", "capabilities": "/v1/capabilities", "workflows": "/v1/workflows?limit=10"}
MOST_RATIO, MOST_MORE_MS = 2.0, 2.0
LEAST_READS = 1_000.0

Once = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class ReadRate:
    """The reads of one path."""

    per_second: float
    per_core_second: float
    """The reads in one second of the API process's own time, in user mode and kernel."""


@dataclass(frozen=True, slots=True)
class ApiTimes:
    """The measured figures of a run."""

    round_trips: tuple[float, ...]
    """The milliseconds of a task of the direct lane, from submit to the result in hand."""
    requests: tuple[float, ...]
    """The same by one request of the API."""
    reads: dict[str, ReadRate]


class Connection:
    """A kept-alive connection to the API, with as little of HTTP as it takes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    async def send(self, method: str, path: str, body: bytes = b"") -> Any:
        """Send one request, and return its answer's JSON; fail for an error."""
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await self._reader.readexactly(int(headers["content-length"]))
        assert status.split()[1] == "200", (status, answer)
        return json.loads(answer)

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def connect(port: int) -> Connection:
    """Return a connection to the API at a port of this machine."""
    return Connection(*await asyncio.open_connection("127.0.0.1", port), f"127.0.0.1:{port}")


def api(port: int) -> Program:
    """Return the API as a program at a port."""
    return python("api", "coditect", "api", "--port", str(port))


async def milliseconds(once: Once, count: int) -> list[float]:
    """Return the milliseconds of each of `count` calls, one after the other."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await once()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def read_rate(port: int, pid: int, path: str, count: int) -> ReadRate:
    """Read a path so many times over several connections at once."""
    connections = [await connect(port) for _ in range(READERS)]
    numbers = iter(range(count))

    async def read(connection: Connection) -> None:
        for _ in numbers:
            await connection.send("GET", path)

    process = psutil.Process(pid)
    before, began = process.cpu_times(), time.perf_counter()
    await asyncio.gather(*(read(connection) for connection in connections))
    took, after = time.perf_counter() - began, process.cpu_times()
    for connection in connections:
        connection.close()
    return ReadRate(count / took, count / (after.user + after.system - before.user - before.system))


async def measure(stage: Stage, size: Size) -> ApiTimes:
    """Measure alternating rounds of direct lane and API, and then the reads."""
    (port,) = free_ports(1)
    async with fleet(stage), stage.running(api(port)) as pid, Client.connecting(stage.settings) as client:
        connection = await connect(port)
        order = json.dumps({"capability": ECHO, "input": {"number": 1, "text": "x"}}).encode()

        async def round_trip() -> None:
            await client.request(ECHO, Echo(1, "x"), Echo)

        async def request() -> None:
            answer = await connection.send("POST", "/v1/tasks?wait=30s", order)
            assert answer["status"] == "completed", answer

        sides: tuple[Once, ...] = (round_trip, request)
        taken: tuple[list[float], list[float]] = ([], [])
        for side in sides:
            await milliseconds(side, WARM_UP)
        for _ in range(ROUNDS):
            for side, of_side in zip(sides, taken, strict=True):
                of_side.extend(await milliseconds(side, size.round_trips // ROUNDS))
        connection.close()
        reads = {name: await read_rate(port, pid, path, size.round_trips) for name, path in READS.items()}
    return ApiTimes(tuple(taken[0]), tuple(taken[1]), reads)


def verdicts(found: ApiTimes) -> tuple[Verdict, ...]:
    """Compare a request with a round trip, and the reads in a second of the API's own time with their bound."""
    most = MOST_RATIO * percentile(found.round_trips, 50) + MOST_MORE_MS
    request = percentile(found.requests, 50)
    reads = tuple(
        Verdict(f"reads of {name} on one core", rate.per_core_second, Bound.AT_LEAST, LEAST_READS, "/s")
        for name, rate in found.reads.items()
    )
    named = f"submit and result over HTTP p50 (bound: {MOST_RATIO:g} x the direct lane's + {MOST_MORE_MS:g} ms)"
    return (Verdict(named, request, Bound.AT_MOST, most, "ms"), *reads)


def figures(found: ApiTimes) -> tuple[Figure, ...]:
    """Return the middle and the slow end of both sides, and the reads beside all that shares the cores."""
    sides = {"direct round trip": found.round_trips, "submit and result over HTTP": found.requests}
    times = tuple(
        Figure(f"{name} p{share}", percentile(values, share), "ms")
        for name, values in sides.items()
        for share in (50, 99)
    )
    rates = (
        Figure(f"reads of {name}, with reader, broker and agents on the same machine", rate.per_second, "/s")
        for name, rate in found.reads.items()
    )
    return (*times, *rates)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the HTTP API, and judge it."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
