"""The cost of an idle agent, and the start times of programs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.figures import median
from benchmarks.parts.waiting import WAITER, started_ns, submit_waits
from benchmarks.programs.workload import WAIT
from benchmarks.size import Size
from benchmarks.stage import PYTHON, Program, Stage, failed
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client, Priority

NAME = "footprint"
SETTLE_SECONDS = 2.0
MOST_MEGABYTES = 80.0
MOST_CPU_PERCENT = 1.0
MOST_HELP_MS = 300.0
MOST_START_SECONDS = 1.5
COMMAND = str(Path(PYTHON).with_name("coditect"))


@dataclass(frozen=True, slots=True)
class Footprint:
    """The figures of the idle agent, the help text and the starts, one value for each repetition."""

    resident_megabytes: float
    cpu_percent: float
    help_milliseconds: tuple[float, ...]
    start_seconds: tuple[float, ...]


def command_line_agent() -> Program:
    """Return an agent process as a user starts it."""
    return Program("agent", (COMMAND, "agent", "run", WAITER))


async def idle_agent(stage: Stage, seconds: float) -> tuple[float, float]:
    """Return the resident megabytes, and the per cent of a core, of an agent that waits for work."""
    async with stage.running(command_line_agent()) as pid:
        process = psutil.Process(pid)
        await asyncio.sleep(SETTLE_SECONDS)
        before, began = process.cpu_times(), time.monotonic()
        await asyncio.sleep(seconds)
        after, ran = process.cpu_times(), time.monotonic() - began
        used = after.user + after.system - before.user - before.system
        return process.memory_info().rss / 1e6, 100 * used / ran


async def help_milliseconds() -> float:
    """Return the milliseconds from the start of `coditect --help` to its end."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        COMMAND, "--help", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    if await process.wait():
        raise RuntimeError("coditect --help failed")
    return (time.perf_counter() - began) * 1000


async def start_seconds(stage: Stage, client: Client) -> float:
    """Return the seconds from the start of an agent process to the start of a task that waits for it."""
    (handle,) = await submit_waits(client, 1, milliseconds=0, priority=Priority.P1)
    began_ns = time.monotonic_ns()
    running = stage.start(command_line_agent())
    try:
        async with asyncio.timeout(30):
            seconds = (await started_ns(handle) - began_ns) / 1e9
    except TimeoutError as error:
        raise failed(running) from error
    finally:
        await running.stop()
    return seconds


async def measure(stage: Stage, size: Size) -> Footprint:
    """Measure the help text, the idle agent, and then the starts, whose tasks wait in the idle agent's queues."""
    await help_milliseconds()
    helps = [await help_milliseconds() for _ in range(size.repeats)]
    megabytes, percent = await idle_agent(stage, size.idle_seconds)
    async with Client.connecting(stage.settings) as client:
        starts = [await start_seconds(stage, client) for _ in range(size.repeats)]
    await stage.forget([WAIT])
    return Footprint(megabytes, percent, tuple(helps), tuple(starts))


def verdict(found: Footprint) -> tuple[Verdict, ...]:
    """Judge the figures, by medians where there are repetitions."""
    return (
        Verdict("idle agent, resident", found.resident_megabytes, Bound.BELOW, MOST_MEGABYTES, "MB"),
        Verdict("idle agent, of a core", found.cpu_percent, Bound.BELOW, MOST_CPU_PERCENT, "%"),
        Verdict("coditect --help", median(found.help_milliseconds), Bound.BELOW, MOST_HELP_MS, "ms"),
        Verdict("agent start to first task", median(found.start_seconds), Bound.BELOW, MOST_START_SECONDS, "s"),
    )


def figures(found: Footprint) -> tuple[Figure, ...]:
    """Return the worst figures of the repetitions."""
    return (
        Figure("coditect --help, slowest", max(found.help_milliseconds), "ms"),
        Figure("agent start to first task, slowest", max(found.start_seconds), "s"),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure the idle agent and the start times, and judge them."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), asdict(found))
