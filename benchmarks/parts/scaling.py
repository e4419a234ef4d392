"""How speed moves with more agent processes, more capabilities and larger bodies: three parts of one shape."""

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
"""Of all bodies of a burst; larger ones are fewer."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is varied, over which steps, and for whom."""

    name: str
    unit: str
    """Of the steps."""
    sides: Sequence[Side]
    steps: Sequence[int]
    order: Callable[[Size, int], Order]
    """What the client does at this step."""
    agents: Callable[[int], int] = lambda _step: 1
    """How many agent processes run at this step."""
    once: Sequence[int] = ()
    """Steps that take so long that they have one round only."""


Answer = Mapping[Side, Mapping[int, tuple[float, ...]]]
"""Tasks per second by step, one per round."""


def plain_burst(size: Size, _step: int) -> Order:
    """The same at every step."""
    return Order(Mode.BURST, WARM_UP, size.scaling_tasks)


def spread_burst(size: Size, step: int) -> Order:
    """Spread over so many capabilities; the warm-up touches each."""
    return Order(Mode.BURST, max(WARM_UP, step), size.scaling_tasks // 3, capabilities=step)


def sized_burst(size: Size, step: int) -> Order:
    """Bodies of so many kilobytes."""
    tasks = min(size.scaling_tasks, MOST_BODY_BYTES // (step * 1_000))
    return Order(Mode.BURST, min(WARM_UP, tasks), tasks, body_bytes=step * 1_000)


BY_AGENTS = Question(
    "agents", "agent processes", (Side.DIRECT, Side.AIO_PIKA), AGENTS, plain_burst, agents=lambda step: step
)
BY_CAPABILITIES = Question(
    "capabilities", "capabilities of one agent", (Side.DIRECT,), CAPABILITIES, spread_burst, once=(1_000,)
)
BY_BODY = Question("bodies", "kB of body", (Side.DIRECT, Side.AIO_PIKA), BODY_KB, sized_burst)


async def measure(stage: Stage, size: Size, question: Question) -> Answer:
    """Alternating rounds of the sides at each step."""
    found: dict[Side, dict[int, tuple[float, ...]]] = {side: {} for side in question.sides}
    for step in question.steps:
        order = question.order(size, step)
        for number in range(1 if step in question.once else size.scaling_rounds):
            for side in rotated(question.sides, number):
                one = await one_round(stage, side, order, agents=question.agents(step))
                found[side][step] = (*found[side].get(step, ()), one["tasks"] / one["seconds"])
        await stage.forget(echo_capability(number) for number in range(1, order.capabilities))
    return found


def figures(question: Question, found: Answer) -> tuple[Figure, ...]:
    """The median of each step."""
    return tuple(
        Figure(f"{side.value}: {step:,} {question.unit}", median(rounds), "/s")
        for side, steps in found.items()
        for step, rounds in steps.items()
    )


def charts(question: Question, found: Answer) -> tuple[Chart, ...]:
    """Tasks per second over the steps."""
    series = {side.value: [(step, median(rounds)) for step, rounds in steps.items()] for side, steps in found.items()}
    ours = series[Side.DIRECT.value]
    (first, before), (last, after) = ours[0], ours[-1]
    title = f"From {first:,} to {last:,} {question.unit}: {before:,.0f} to {after:,.0f} tasks per second"
    return (Lines(question.name, title, question.unit, "tasks per second", series, level_logarithmic=True),)


async def answer(stage: Stage, size: Size, question: Question) -> Findings:
    """Measures; growth has no target of its own."""
    found = await measure(stage, size, question)
    raw = {side.value: dict(steps) for side, steps in found.items()}
    return Findings(question.name, (), figures(question, found), raw, charts(question, found))


async def agents(stage: Stage, size: Size) -> Findings:
    """More agent processes."""
    return await answer(stage, size, BY_AGENTS)


async def capabilities(stage: Stage, size: Size) -> Findings:
    """More capabilities."""
    return await answer(stage, size, BY_CAPABILITIES)


async def bodies(stage: Stage, size: Size) -> Findings:
    """Larger bodies."""
    return await answer(stage, size, BY_BODY)
