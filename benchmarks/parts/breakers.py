"""Circuit breakers: what a call of a closed one costs, and how a fleet of agents learns of an outage and probes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field

from benchmarks.figures import percentile
from benchmarks.parts.graph_sides import dispatcher
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Agent, Breaker, Client
from coditect.agent.program import running_agent
from coditect.agent.runtime import Runtime
from coditect.aio.clock import SystemClock
from coditect.broker.rabbitmq import AmqpBroker
from coditect.registry.redis import RedisRegistry

NAME = "breakers"
AGENTS = 20
TASKS = 10
"""The tasks for each agent, which meet the outage."""
RESET_SECONDS = 2.0
GUARD = Breaker("bench", failures=3, reset=RESET_SECONDS, on=(OSError,))
CALLED = "bench.guarded"
LOOK_SECONDS = 0.001
MOST_CALL_MICROSECONDS = 5.0
MOST_SPREAD_SECONDS = 1.0


@dataclass(slots=True)
class Dependency:
    """A dependency of all agents, which is down until it is mended, and the instants of its calls."""

    down: bool = True
    failed: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def call(self) -> None:
        """Fail while the dependency is down."""
        (self.failed if self.down else self.done).append(time.monotonic())
        if self.down:
            raise OSError("the dependency is down")


@dataclass(frozen=True, slots=True)
class BreakerTimes:
    """The measured times of a run."""

    calls: tuple[float, ...]
    """The microseconds of each call of a closed breaker, with nothing inside of it."""
    opened: tuple[float, ...]
    """For each agent the seconds from the trip of one of them until its own breaker was open."""
    probes: tuple[float, ...]
    """The seconds of the outage at which a call was made, while tasks waited at all agents."""
    recovered: float
    """The seconds from the end of the outage to the first call that succeeded."""


async def closed_calls(client: Client, count: int) -> list[float]:
    """Return the microseconds of each of `count` calls of a closed breaker."""
    taken = []
    for _ in range(count):
        began = time.perf_counter_ns()
        async with client.breaker("bench:closed"):
            pass
        taken.append((time.perf_counter_ns() - began) / 1000)
    return taken


@asynccontextmanager
async def fleet_of(stage: Stage, dependency: Dependency) -> AsyncIterator[list[Runtime]]:
    """Run the agents in this process, each with connections of its own, and yield their runtimes."""
    agent = Agent("guarded", slots=2)

    @agent.capability(CALLED, breaker=GUARD)
    async def call(_: None) -> None:
        dependency.call()

    settings, runtimes = stage.settings, list[Runtime]()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(RedisRegistry(settings.redis_url))
        for number in range(AGENTS):
            broker = await stack.enter_async_context(AmqpBroker(settings.amqp_url, name=f"guarded-{number}"))
            running = running_agent(
                agent, broker=broker, registry=registry, settings=settings, clock=SystemClock(), drain=asyncio.Event()
            )
            runtimes.append(await stack.enter_async_context(running))
        yield runtimes


async def trip(runtime: Runtime) -> None:
    """Let calls of one agent fail until its breaker opens."""
    breaker = runtime.guards.breakers.get(GUARD)
    while breaker.is_closed:
        with suppress(OSError):
            async with breaker.call():
                raise OSError("the dependency is down")


async def until_all_open(runtimes: list[Runtime]) -> list[float]:
    """Return the instants at which the breaker of each agent was first seen open."""
    opened: dict[int, float] = {}
    while len(opened) < len(runtimes):
        for number, runtime in enumerate(runtimes):
            if number not in opened and not runtime.guards.breakers.get(GUARD).is_closed:
                opened[number] = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
    return list(opened.values())


async def measure(stage: Stage, size: Size) -> BreakerTimes:
    """Measure closed calls, a trip, and an outage of some probe intervals in which tasks wait."""
    dependency = Dependency()
    async with stage.running(dispatcher(stage)), Client.connecting(stage.settings) as client:
        calls = await closed_calls(client, size.round_trips * 10)
        async with fleet_of(stage, dependency) as runtimes, asyncio.timeout(300):
            await trip(runtimes[0])
            opened = await until_all_open(runtimes)
            handles = [await client.submit(CALLED) for _ in range(TASKS * AGENTS)]
            await asyncio.sleep(size.probe_intervals * RESET_SECONDS)
            dependency.down, mended = False, time.monotonic()
            for handle in handles:
                await handle.result()
    first = min(opened)
    probes = [at - first for at in dependency.failed]
    opened = [at - first for at in opened]
    return BreakerTimes(tuple(calls), tuple(opened), tuple(probes), dependency.done[0] - mended)


def most_in_an_interval(probes: tuple[float, ...]) -> int:
    """Return the largest number of probes within nine tenths of an interval: the way to the dependency takes time."""
    return max((sum(at <= other < at + 0.9 * RESET_SECONDS for other in probes) for at in probes), default=0)


def verdicts(found: BreakerTimes) -> tuple[Verdict, ...]:
    """Judge the middle of the closed calls, the spread of the trip, and the probes of an interval."""
    call = percentile(found.calls, 50)
    return (
        Verdict("closed call p50", call, Bound.AT_MOST, MOST_CALL_MICROSECONDS, "µs"),
        Verdict(f"all {AGENTS} open after the first", max(found.opened), Bound.AT_MOST, MOST_SPREAD_SECONDS, "s"),
        Verdict(f"probes of {AGENTS} agents in an interval", most_in_an_interval(found.probes), Bound.AT_MOST, 1),
    )


def figures(found: BreakerTimes) -> tuple[Figure, ...]:
    """Return the slow end of the closed calls, the number of probes, and the time to recover."""
    return (
        Figure("closed call p99", percentile(found.calls, 99), "µs"),
        Figure("probes during the outage", len(found.probes)),
        Figure("first call after the outage", found.recovered, "s"),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure breakers, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
