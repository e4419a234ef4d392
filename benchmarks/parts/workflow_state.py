"""The answers of a busy dispatcher, durable tasks beside direct ones, the time of a restart, and an idle dispatcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil

from benchmarks.figures import median, percentile
from benchmarks.parts.graph_sides import agents, dispatcher, fleet
from benchmarks.parts.sides import ECHOER
from benchmarks.parts.waiting import WAITER
from benchmarks.programs.coditect_graphs import definition_of
from benchmarks.programs.graphs import Graph, layered
from benchmarks.programs.workload import ECHO, WAIT, Echo
from benchmarks.size import Size
from benchmarks.stage import Program, Stage, failed, until_ready
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Workflow
from coditect.client.workflow_run import WorkflowRun
from coditect.workflow.definition import Definition

NAME = "workflow-state"
SHORTEST_MS, SPREAD_MS = 2_000, 2_000
PAUSE_SECONDS = 0.002
"""The pause between two queries; a person's dashboard asks more rarely."""
LONGEST_SECONDS = 300.0
SETTLE_SECONDS = 3.0
WARM_UP = 50
MOST_QUERY_MS = 10.0
MOST_RESTART_SECONDS = 1.0
MOST_DURABLE = 2.5
"""The target of a durable task's time, as a multiple of a direct one's."""
MOST_CPU_PERCENT = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of the queries, the durable tasks, the restarts and the idle dispatcher."""

    query_milliseconds: tuple[float, ...]
    """The time of each state query while 1,000 nodes ran."""
    hurried_milliseconds: tuple[float, ...]
    """The time of each state query while no-op nodes ran as fast as they could."""
    direct_milliseconds: tuple[float, ...]
    """The time of each direct task from submit to result, one at a time, in turns with durable ones."""
    durable_milliseconds: tuple[float, ...]
    """The same of each durable task."""
    ready_seconds: tuple[float, ...]
    """The time from the start of a dispatcher, whose ledger is full of live nodes, until the dispatcher is ready."""
    restart_seconds: tuple[float, ...]
    """The time from that start until the dispatcher has committed a change of their workflow."""
    cpu_percent: float
    """The per cent of a core that an idle dispatcher uses."""
    idle_megabytes: float


def waiting(nodes: int) -> Definition:
    """Return a workflow of nodes side by side, which wait two to four seconds each, as most work of agents does."""
    flow = Workflow("waiting")
    for number in range(nodes):
        flow.task(WAIT, {"milliseconds": SHORTEST_MS + SPREAD_MS * number // nodes}, name=f"n{number:06}")
    return flow.definition()


async def query_milliseconds(stage: Stage, size: Size, definition: Definition, target: str) -> list[float]:
    """Run the workflow again and again, and ask one query after the other meanwhile; return their milliseconds."""
    taken: list[float] = []
    async with fleet(stage, target), Client.connecting(stage.settings) as client:
        async with asyncio.timeout(LONGEST_SECONDS):
            while len(taken) < size.state_queries:
                taken += await _while_it_runs(await client.start(definition))
    return taken


async def _while_it_runs(run: WorkflowRun) -> list[float]:
    taken: list[float] = []
    while True:
        began = time.perf_counter()
        state = await run.state()
        taken.append((time.perf_counter() - began) * 1000)
        if state.terminal:
            return taken
        await asyncio.sleep(PAUSE_SECONDS)


async def round_trips(stage: Stage, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of direct and of durable tasks from submit to result, in turns, one at a time."""
    taken: tuple[list[float], list[float]] = ([], [])
    async with fleet(stage, ECHOER), Client.connecting(stage.settings) as client:
        for number in range(2 * (count + WARM_UP)):
            began = time.perf_counter()
            await (await client.submit(ECHO, Echo(number, "x"), durable=bool(number % 2))).result(timeout="1m")
            taken[number % 2].append((time.perf_counter() - began) * 1000)
    return taken[0][WARM_UP:], taken[1][WARM_UP:]


async def restart_seconds(stage: Stage, graph: Graph, repeats: int) -> list[tuple[float, float]]:
    """Return the seconds until a restarted dispatcher is ready, and until it has committed a pause of its workflow.

    No agent runs meanwhile: the agents' queues exist, and nothing consumes them.
    """
    program = dispatcher(stage)
    taken = []
    async with Client.connecting(stage.settings) as client:
        for agent in agents():
            async with stage.running(agent):
                pass
        async with stage.running(program):
            run = await client.start(definition_of(graph))
        for _ in range(repeats):
            taken.append(await _restarted(stage, program, run))
    return taken


async def _restarted(stage: Stage, program: Program, run: WorkflowRun) -> tuple[float, float]:
    ready_file = stage.file("ready")
    began = time.perf_counter()
    running = stage.start(program, ready_file=ready_file)
    try:
        await until_ready(running, ready_file, seconds=program.ready_seconds)
        ready = time.perf_counter() - began
        await run.pause()
        committed = time.perf_counter() - began
        await run.resume()
    except TimeoutError as error:
        raise failed(running) from error
    finally:
        await running.stop()
    return ready, committed


async def idle(stage: Stage, seconds: float) -> tuple[float, float]:
    """Return the per cent of a core, and the resident megabytes, of an idle dispatcher."""
    async with stage.running(dispatcher(stage)) as pid:
        process = psutil.Process(pid)
        await asyncio.sleep(SETTLE_SECONDS)
        before, began = process.cpu_times(), time.monotonic()
        await asyncio.sleep(seconds)
        after, ran = process.cpu_times(), time.monotonic() - began
        used = after.user + after.system - before.user - before.system
        return 100 * used / ran, process.memory_info().rss / 1e6


async def measure(stage: Stage, size: Size) -> Found:
    """Measure queries, restarts and the idle dispatcher, one after the other."""
    queries = await query_milliseconds(stage, size, waiting(size.graph_width), WAITER)
    no_op = definition_of(layered(10, size.graph_width // 10))
    hurried = await query_milliseconds(stage, size, no_op, ECHOER)
    direct, durable = await round_trips(stage, size.state_queries)
    restarts = await restart_seconds(stage, layered(10, size.live_nodes // 10), size.repeats // 2)
    percent, megabytes = await idle(stage, size.idle_seconds)
    ready, committed = zip(*restarts, strict=True)
    trips = tuple(direct), tuple(durable)
    return Found(tuple(queries), tuple(hurried), *trips, ready, committed, percent, megabytes)


def verdicts(found: Found, live_nodes: int) -> tuple[Verdict, ...]:
    """Judge query time, restart time, durable tasks and the cost of an idle dispatcher by their targets."""
    return (
        Verdict("state query p99 while 1,000 nodes run", percentile(found.query_milliseconds, 99), Bound.BELOW,
                MOST_QUERY_MS, "ms"),
        Verdict(f"dispatcher's restart with {live_nodes:,} live nodes", median(found.restart_seconds), Bound.AT_MOST,
                MOST_RESTART_SECONDS, "s"),
        Verdict("durable task / direct task, p50", _p50(found.durable_milliseconds) / _p50(found.direct_milliseconds),
                Bound.AT_MOST, MOST_DURABLE, "x"),
        Verdict("idle dispatcher, of a core", found.cpu_percent, Bound.BELOW, MOST_CPU_PERCENT, "%"),
    )  # fmt: skip


def figures(found: Found) -> tuple[Figure, ...]:
    """Return the figures behind the targets."""
    return (
        Figure("state query p50", _p50(found.query_milliseconds), "ms"),
        Figure("state query p50 beside no-op nodes at full speed", _p50(found.hurried_milliseconds), "ms"),
        Figure("state query p99 beside no-op nodes at full speed", percentile(found.hurried_milliseconds, 99), "ms"),
        Figure("direct task, submit to result, p50", _p50(found.direct_milliseconds), "ms"),
        Figure("durable task, submit to result, p50", _p50(found.durable_milliseconds), "ms"),
        Figure("dispatcher says that it is ready", median(found.ready_seconds), "s"),
        Figure("dispatcher's restart, slowest", max(found.restart_seconds), "s"),
        Figure("idle dispatcher, resident", found.idle_megabytes, "MB"),
    )


def _p50(values: Sequence[float]) -> float:
    return percentile(values, 50)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure queries, restarts and the idle dispatcher, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found, size.live_nodes), figures(found), asdict(found))
