"""The speed of no-op tasks without results: from the first publish until the agent has executed the last task."""

from __future__ import annotations

from benchmarks.charts import Chart, times
from benchmarks.parts.pace import Paces, figures, paces, ratio_verdict, raw, speed_bars, speed_target, to_aio_pika
from benchmarks.parts.sides import BY_HAND, Side, alternating
from benchmarks.programs.order import Mode, Order
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Findings, Verdict

NAME = "fire-and-forget"
LEAST_RATIO = 3.0


async def measure(stage: Stage, size: Size) -> Paces:
    """Measure alternating rounds of all sides."""
    order = Order(Mode.FORGET, size.warm_up, size.tasks)
    return paces(await alternating(stage, BY_HAND, order, rounds=size.rounds))


def verdict(found: Paces) -> tuple[Verdict, ...]:
    """Compare our speed with the hand-written aio-pika program's."""
    return (ratio_verdict(found, "tasks without a result per second", LEAST_RATIO),)


def charts(found: Paces) -> tuple[Chart, ...]:
    """Return a chart of the tasks per second of every side."""
    ahead = times(to_aio_pika(found, Side.CODITECT))
    title = f"Fire and forget, until executed: {ahead} the hand-written aio-pika program"
    return (speed_bars(found, name=NAME, title=title, targets=(speed_target(found, LEAST_RATIO),)),)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure tasks without results on all sides, and judge the speed."""
    found = await measure(stage, size)
    return Findings(NAME, verdict(found), figures(found), raw(found), charts(found))
