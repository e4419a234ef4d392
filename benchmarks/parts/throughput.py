"""The speed of no-op tasks with results: one client process, one agent process, the broker."""

from __future__ import annotations

from benchmarks.charts import Chart, times
from benchmarks.parts.pace import (
    Paces,
    cpu_bars,
    cpu_verdicts,
    figures,
    paces,
    ratio_verdict,
    raw,
    speed_bars,
    speed_target,
    to_aio_pika,
)
from benchmarks.parts.sides import BY_HAND, Side, alternating
from benchmarks.programs.order import Mode, Order
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Findings, Verdict

NAME = "throughput"
LEAST_RATIO = 3.0


async def measure(stage: Stage, size: Size) -> Paces:
    """Measure alternating rounds of all sides."""
    order = Order(Mode.BURST, size.warm_up, size.tasks)
    return paces(await alternating(stage, BY_HAND, order, rounds=size.rounds))


def verdict(found: Paces) -> tuple[Verdict, ...]:
    """Compare our speed with the hand-written aio-pika program's, and our processor time with a fixed bound."""
    return ratio_verdict(found, "no-op tasks per second", LEAST_RATIO), *cpu_verdicts(found, "task")


def charts(found: Paces) -> tuple[Chart, ...]:
    """Return charts of the speed and of the cost."""
    ahead = times(to_aio_pika(found, Side.CODITECT))
    return (
        speed_bars(
            found,
            name="throughput",
            title=f"No-op tasks with a result: {ahead} the hand-written aio-pika program",
            targets=(speed_target(found, LEAST_RATIO),),
        ),
        cpu_bars(found, name="cpu", title="What a no-op task with a result costs each process"),
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure tasks with results on all sides, and judge speed and processor time."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), raw(found), charts(found))
