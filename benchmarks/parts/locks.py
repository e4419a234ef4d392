"""Locks beside one round trip of the direct lane and beside Redis's own lock, and the turns of many waiters."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from redis.asyncio import Redis

from benchmarks.figures import percentile
from benchmarks.parts.graph_sides import fleet
from benchmarks.programs.workload import ECHO, Echo
from benchmarks.size import Size
from benchmarks.stage import PYTHON, ROOT, Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client

NAME = "locks"
WARM_UP = 50
WAITERS = 50
ROUNDS = 10
"""The alternating rounds of the three sides; each has a share of `Size.round_trips`."""
MOST_RATIO = 2.0
MOST_TURN_MS = 20.0
AT_ONCE = 500
"""The holders in one process that is paused."""
HOLDER_SECONDS = 60.0

Once = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class LockTimes:
    """The milliseconds of each measured step of a run."""

    round_trips: tuple[float, ...]
    """A task of the direct lane, from submit to the result in hand."""
    locks: tuple[float, ...]
    """A lock that no other process wants, from acquire to released."""
    redis_locks: tuple[float, ...]
    """The same with redis-py's Lock, which has no fence and waits by polling."""
    turns: tuple[float, ...]
    """From a holder's release to the next waiter's grant, with `WAITERS` asyncio tasks at one resource."""
    late_writes: int
    """The writes of holders that were paused past their TTL, each after the next holder's write."""
    accepted: int
    """The late writes that a resource accepts which checks the fence."""


async def milliseconds(once: Once, count: int) -> list[float]:
    """Return the milliseconds of each of `count` calls, one after the other."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await once()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def turns(client: Client, count: int) -> list[float]:
    """Let waiters take turns at one resource, and return the milliseconds from each release to the next grant."""
    taken: list[float] = []
    released: list[float] = []

    async def take_turns(times: int) -> None:
        for _ in range(times):
            async with client.lock("bench:turns"):
                if released:
                    taken.append((time.perf_counter() - released[-1]) * 1000)
                released.append(time.perf_counter())

    await asyncio.gather(*(take_turns(-(-count // WAITERS)) for _ in range(WAITERS)))
    return taken


async def paused_holders(stage: Stage, client: Client, count: int) -> tuple[int, int]:
    """Pause a process that holds many locks past their TTL, and write under each by the next holder meanwhile.

    Return the number of paused holders that wrote when they went on, and how many of their writes a resource that
    checks the fence accepts.
    """
    highest: dict[str, int] = {}
    urls = {"CODITECT_AMQP_URL": stage.settings.amqp_url, "CODITECT_REDIS_URL": stage.settings.redis_url}
    program = (PYTHON, "-m", "benchmarks.programs.lock_holder", str(count))
    holder = await asyncio.create_subprocess_exec(*program, stdin=PIPE, stdout=PIPE, env=os.environ | urls, cwd=ROOT)
    assert holder.stdout is not None
    try:
        await holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)

        async def follow(resource: str) -> None:
            async with client.lock(resource) as lock:
                highest[resource] = max(highest.get(resource, 0), lock.fence)

        await asyncio.gather(*(follow(f"paused:{number}") for number in range(count)))
        holder.send_signal(signal.SIGCONT)
        output, _ = await asyncio.wait_for(holder.communicate(b"write\n"), HOLDER_SECONDS)
    finally:
        if holder.returncode is None:
            holder.kill()
            await holder.wait()
    writes = [line.split() for line in output.decode().splitlines()]
    return len(writes), sum(int(fence) >= highest[resource] for resource, fence in writes)


async def measure(stage: Stage, size: Size) -> LockTimes:
    """Measure alternating rounds of the three sides, and then the turns of the waiters."""
    redis: Redis = Redis.from_url(stage.settings.redis_url)
    async with fleet(stage), Client.connecting(stage.settings) as client, redis:

        async def round_trip() -> None:
            await client.request(ECHO, Echo(1, "x"), Echo)

        async def lock() -> None:
            async with client.lock("bench:free"):
                pass

        async def redis_lock() -> None:
            async with redis.lock("bench:free", timeout=10):
                pass

        sides: tuple[Once, ...] = (round_trip, lock, redis_lock)
        taken: list[list[float]] = [[], [], []]
        for side in sides:
            await milliseconds(side, WARM_UP)
        for _ in range(ROUNDS):
            for side, of_side in zip(sides, taken, strict=True):
                of_side.extend(await milliseconds(side, size.round_trips // ROUNDS))
        in_turn = await turns(client, size.round_trips)
        paused = [await paused_holders(stage, client, AT_ONCE) for _ in range(size.paused_holders // AT_ONCE)]
    late, accepted = (sum(column) for column in zip(*paused, strict=True))
    return LockTimes(tuple(taken[0]), tuple(taken[1]), tuple(taken[2]), tuple(in_turn), late, accepted)


def verdicts(found: LockTimes) -> tuple[Verdict, ...]:
    """Compare an uncontended lock with one round trip, and a turn of many waiters with its bound."""
    ratio = percentile(found.locks, 50) / percentile(found.round_trips, 50)
    turn = percentile(found.turns, 99)
    return (
        Verdict("uncontended lock p50 / direct round trip p50", ratio, Bound.AT_MOST, MOST_RATIO, "x"),
        Verdict(f"turn of {WAITERS} waiters p99", turn, Bound.BELOW, MOST_TURN_MS, "ms"),
        Verdict(f"stale writes accepted of {found.late_writes:,}", found.accepted, Bound.AT_MOST, 0),
    )


def figures(found: LockTimes) -> tuple[Figure, ...]:
    """Return the middle and the slow end of every step."""
    named = {
        "direct round trip": found.round_trips,
        "uncontended lock": found.locks,
        "uncontended lock of redis-py": found.redis_locks,
        f"turn of {WAITERS} waiters": found.turns,
    }
    return tuple(
        Figure(f"{name} p{share}", percentile(values, share), "ms")
        for name, values in named.items()
        for share in (50, 99)
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure locks, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
