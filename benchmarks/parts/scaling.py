"""The speed with more agent processes, more capabilities and larger bodies: three parts of one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.charts import Chart, Lines
from benchmarks.figures import median
from benchmarks.parts.sides import Side, one_round, rotated
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.workload import echo_capability
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Figure, Findings

AGENTS = (1, 2, 4, 8)
CAPABILITIES = (1, 10, 100, 1_000)
BODY_KB = (1, 4, 16, 64, 256)
WARM_UP = 200
MOST_BODY_BYTES = 64_000_000
"""The bound of all bodies of a burst together: with larger bodies a burst has fewer tasks."""


@dataclass(frozen=True, slots=True)
class Question:
    """A part about growth: the quantity that varies, its steps, and the measured sides."""

    name: str
    unit: str
    """The unit of the steps."""
    sides: Sequence[Side]
    steps: Sequence[int]
    order: Callable[[Size, int], Order]
    """The client's order at a step."""
    agents: Callable[[int], int] = lambda _step: 1
    """The number of agent processes at a step."""
    once: Sequence[int] = ()
    """Steps that take so long that they have only one round."""


Answer = Mapping[Side, Mapping[int, tuple[float, ...]]]
"""The tasks per second by side and step, one value for each round."""


def plain_burst(size: Size, _step: int) -> Order:
    """Return an order of the same size at every step, where only the agents vary."""
    return Order(Mode.BURST, WARM_UP, size.scaling_tasks)


def spread_burst(size: Size, step: int) -> Order:
    """Return an order whose tasks are spread over `step` capabilities; the warm-up uses each."""
    return Order(Mode.BURST, max(WARM_UP, step), size.scaling_tasks // 3, capabilities=step)


def sized_burst(size: Size, step: int) -> Order:
    """Return an order with bodies of `step` kilobytes."""
    tasks = min(size.scaling_tasks, MOST_BODY_BYTES // (step * 1_000))
    return Order(Mode.BURST, min(WARM_UP, tasks), tasks, body_bytes=step * 1_000)


BY_AGENTS = Question(
    "agents", "agent processes", (Side.CODITECT, Side.AIO_PIKA), AGENTS, plain_burst, agents=lambda step: step
)
BY_CAPABILITIES = Question(
    "capabilities", "capabilities of one agent", (Side.CODITECT,), CAPABILITIES, spread_burst, once=(1_000,)
)
BY_BODY = Question("bodies", "kB of body", (Side.CODITECT, Side.AIO_PIKA), BODY_KB, sized_burst)


async def measure(stage: Stage, size: Size, question: Question) -> Answer:
    """Measure alternating rounds of the sides at each step."""
    found: dict[Side, dict[int, tuple[float, ...]]] = {side: {} for side in question.sides}
    for step in question.steps:
        order = question.order(size, step)
        for number in range(1 if step in question.once else size.scaling_rounds):
            for side in rotated(question.sides, number):
                measured = await one_round(stage, side, order, agents=question.agents(step))
                found[side][step] = (*found[side].get(step, ()), measured["tasks"] / measured["seconds"])
        await stage.forget(echo_capability(number) for number in range(1, order.capabilities))
    return found


def figures(question: Question, found: Answer) -> tuple[Figure, ...]:
    """Return the median speed of each side at each step."""
    return tuple(
        Figure(f"{side.value}: {step:,} {question.unit}", median(rounds), "/s")
        for side, steps in found.items()
        for step, rounds in steps.items()
    )


def charts(question: Question, found: Answer) -> tuple[Chart, ...]:
    """Return a chart of tasks per second over the steps."""
    series = {side.value: [(step, median(rounds)) for step, rounds in steps.items()] for side, steps in found.items()}
    ours = series[Side.CODITECT.value]
    (first, before), (last, after) = ours[0], ours[-1]
    title = f"From {first:,} to {last:,} {question.unit}: {before:,.0f} to {after:,.0f} tasks per second"
    return (Lines(question.name, title, question.unit, "tasks per second", series, level_logarithmic=True),)


async def answer(stage: Stage, size: Size, question: Question) -> Findings:
    """Measure without a verdict: growth has no target of its own."""
    found = await measure(stage, size, question)
    raw = {side.value: dict(steps) for side, steps in found.items()}
    return Findings(question.name, (), figures(question, found), raw, charts(question, found))


async def agents(stage: Stage, size: Size) -> Findings:
    """Measure the speed with more and more agent processes."""
    return await answer(stage, size, BY_AGENTS)


async def capabilities(stage: Stage, size: Size) -> Findings:
    """Measure the speed with more and more capabilities."""
    return await answer(stage, size, BY_CAPABILITIES)


async def bodies(stage: Stage, size: Size) -> Findings:
    """Measure the speed with larger and larger bodies."""
    return await answer(stage, size, BY_BODY)
