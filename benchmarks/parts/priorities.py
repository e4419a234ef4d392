"""The waiting time of urgent work behind bulk work, and the share of bulk work beside a flood of urgent work.

In the first scene one agent has 8 slots and a queue of thousands of P2 tasks of 100 ms: P0 tasks arrive one by one, and
then more P0 tasks than the agent can do. In the second scene one of two agents is full, its slot for P0 included, and
the other is idle. The target is about an agent full of long tasks. An agent full of short tasks that only it can do, so
that its slots get free all the time, is shown beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.figures import percentile
from benchmarks.parts.waiting import HAULER, started_ns, submit_waits, waiting_agent
from benchmarks.programs.workload import HAUL, WAIT, Wait
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Handle, Priority

NAME = "priorities"
SLOTS = 8
BULK_MS = 100
SHORT_MS = 10
LONG_MS = 120_000
EVERY_SECONDS = 0.05
SETTLE_SECONDS = 1.0
MOST_LOADED_MS = 200.0
MOST_IDLE_PEER_MS = 10.0
LEAST_BULK_SHARE = 1 / 13
LEAST_URGENT_SHARE = 8 / 13
"""The share that the weights 8:4:1 give P0 even when P1 tasks wait, too; here none wait."""


@dataclass(frozen=True, slots=True)
class Starts:
    """The number of tasks of each level that started during the flood."""

    p0: int
    p2: int


@dataclass(frozen=True, slots=True)
class Waits:
    """The milliseconds from submit to start of P0 tasks, and the starts under the flood."""

    loaded: tuple[float, ...]
    idle_peer: tuple[float, ...]
    idle_peer_of_hauler: tuple[float, ...]
    flood: Starts


async def arrive(client: Client, count: int, *, milliseconds: int) -> tuple[float, ...]:
    """Submit P0 tasks one by one at fixed times, without waiting for earlier ones; return the waits in ms."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        waits = []
        for number in range(count):
            await asyncio.sleep(began + number * EVERY_SECONDS - loop.time())
            waits.append(group.create_task(_wait_ms(client, milliseconds)))
    return tuple(wait.result() for wait in waits)


async def _wait_ms(client: Client, milliseconds: int) -> float:
    submitted_ns = time.monotonic_ns()
    handle = await client.submit(WAIT, Wait(milliseconds), priority=Priority.P0)
    return (await started_ns(handle) - submitted_ns) / 1e6


async def flood(client: Client, bulk: Sequence[Handle], seconds: float) -> Starts:
    """Submit more P0 tasks than the agent can do in the given time, beside waiting bulk work; return the starts."""
    many = int(SLOTS * (seconds + 2 * SETTLE_SECONDS) / (BULK_MS / 1000))
    urgent = await submit_waits(client, many, milliseconds=BULK_MS, priority=Priority.P0)
    await asyncio.sleep(SETTLE_SECONDS)
    since = time.monotonic_ns()
    await asyncio.sleep(seconds)
    until = time.monotonic_ns()
    if all(handle.done for handle in urgent):
        raise RuntimeError("the flood ran dry before its time was over")
    counts = []
    for handles in (urgent, bulk):
        moments = [await started_ns(handle) for handle in handles if handle.done]
        counts.append(sum(since <= moment < until for moment in moments))
    return Starts(*counts)


async def one_loaded_agent(stage: Stage, size: Size) -> tuple[tuple[float, ...], Starts]:
    """Measure P0 tasks against a backlog of P2 tasks: first a few, then a flood."""
    async with stage.running(waiting_agent(slots=SLOTS)), Client.connecting(stage.settings) as client:
        bulk = await submit_waits(client, size.backlog, milliseconds=BULK_MS, priority=Priority.P2)
        await asyncio.sleep(SETTLE_SECONDS)
        waits = await arrive(client, size.urgent, milliseconds=BULK_MS)
        return waits, await flood(client, bulk, size.flood_seconds)


async def idle_peer(stage: Stage, size: Size) -> tuple[float, ...]:
    """Measure P0 tasks while one of two agents is full and the other is idle."""
    full, idle = waiting_agent(slots=SLOTS, drain_seconds=0.0), waiting_agent(slots=SLOTS)
    async with stage.running(full), Client.connecting(stage.settings) as client:
        await fill(client)
        async with stage.running(idle):
            await asyncio.sleep(SETTLE_SECONDS)
            return await arrive(client, size.urgent, milliseconds=SHORT_MS)


async def idle_peer_of_hauler(stage: Stage, size: Size) -> tuple[float, ...]:
    """Measure P0 tasks while one of two agents executes a flood of short P0 tasks that the idle one cannot do."""
    full = waiting_agent(slots=SLOTS, target=HAULER)
    many = int(SLOTS * (size.urgent * EVERY_SECONDS + 4 * SETTLE_SECONDS) / (BULK_MS / 1000))
    async with (
        stage.running(full),
        stage.running(waiting_agent(slots=SLOTS)),
        Client.connecting(stage.settings) as client,
    ):
        await submit_waits(client, many, milliseconds=BULK_MS, priority=Priority.P0, capability=HAUL)
        await asyncio.sleep(SETTLE_SECONDS)
        return await arrive(client, size.urgent, milliseconds=SHORT_MS)


async def fill(client: Client) -> None:
    """Submit long tasks for every slot of the only agent; return when all of them have started."""
    async with client.events("task.started") as started, asyncio.timeout(10):
        await submit_waits(client, 1, milliseconds=LONG_MS, priority=Priority.P0)
        await submit_waits(client, SLOTS - 1, milliseconds=LONG_MS, priority=Priority.P2)
        for _ in range(SLOTS):
            await anext(started)


async def measure(stage: Stage, size: Size) -> Waits:
    """Measure each scene, from empty queues."""
    loaded, starts = await one_loaded_agent(stage, size)
    await stage.forget([WAIT])
    beside_idle = await idle_peer(stage, size)
    await stage.forget([WAIT])
    beside_hauler = await idle_peer_of_hauler(stage, size)
    await stage.forget([WAIT, HAUL])
    return Waits(loaded, beside_idle, beside_hauler, starts)


def verdict(found: Waits) -> tuple[Verdict, ...]:
    """Judge the slow end of the waits, and the shares of the starts."""
    starts = found.flood.p0 + found.flood.p2
    return (
        Verdict(
            "P0 from submit to start, P2 queued, p99", percentile(found.loaded, 99), Bound.AT_MOST, MOST_LOADED_MS, "ms"
        ),
        Verdict(
            "P0 from submit to start, one of two agents idle, p99",
            percentile(found.idle_peer, 99),
            Bound.AT_MOST,
            MOST_IDLE_PEER_MS,
            "ms",
        ),
        Verdict(
            "P2's share of the starts under a flood of P0",
            found.flood.p2 / starts,
            Bound.AT_LEAST,
            LEAST_BULK_SHARE,
        ),
        Verdict(
            "P0's share of the starts under a flood of P0",
            found.flood.p0 / starts,
            Bound.AT_LEAST,
            LEAST_URGENT_SHARE,
        ),
    )


def figures(found: Waits) -> tuple[Figure, ...]:
    """Return the middle and the slow end of the waits, and the starts of each level."""
    return (
        Figure("P0 wait, P2 queued, p50", percentile(found.loaded, 50), "ms"),
        Figure("P0 wait, P2 queued, longest", max(found.loaded), "ms"),
        Figure("P0 wait, one of two agents idle, p50", percentile(found.idle_peer, 50), "ms"),
        Figure("P0 wait, one of two agents idle, longest", max(found.idle_peer), "ms"),
        Figure("P0 wait, beside a hauler, p50", percentile(found.idle_peer_of_hauler, 50), "ms"),
        Figure("P0 wait, beside a hauler, p99", percentile(found.idle_peer_of_hauler, 99), "ms"),
        Figure("P0 starts under the flood", found.flood.p0),
        Figure("P2 starts under the flood", found.flood.p2),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the waits of urgent and bulk work, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), asdict(found))
