"""A command agent beside its bare command: what a task costs more than a start of the same program."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from benchmarks.figures import percentile
from benchmarks.parts.locks import milliseconds
from benchmarks.size import Size
from benchmarks.stage import Stage, python
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client

NAME = "commands"
COMMAND = "cat"
CAPABILITY = "bench.command"
VALUE = {"number": 1, "text": "x"}
WARM_UP = 20
ROUNDS = 10
"""The alternating rounds of the two sides; each has a share of `Size.round_trips`."""
MOST_MORE_MS = 15.0


@dataclass(frozen=True, slots=True)
class CommandTimes:
    """The milliseconds of each run of the two sides."""

    tasks: tuple[float, ...]
    """A task of the command agent, from submit to the result in hand."""
    bare: tuple[float, ...]
    """A start of the same program with the same input, until it has ended and its output is read."""


async def bare() -> None:
    """Run the command once by `subprocess.run`, the quickest that Python has; nothing else is to run meanwhile."""
    body = json.dumps(VALUE).encode()
    ended = subprocess.run([COMMAND], input=body, capture_output=True, check=True)  # noqa: ASYNC221
    assert json.loads(ended.stdout) == VALUE


async def measure(stage: Stage, size: Size) -> CommandTimes:
    """Measure alternating rounds of tasks and bare commands."""
    arguments = ("agent", "run", "--command", COMMAND, "--capability", CAPABILITY)
    async with (
        stage.running(python("command-agent", "coditect", *arguments)),
        Client.connecting(stage.settings) as client,
    ):

        async def task() -> None:
            assert await client.request(CAPABILITY, VALUE) == VALUE

        sides: tuple[Callable[[], Awaitable[None]], ...] = (task, bare)
        taken: tuple[list[float], list[float]] = ([], [])
        for side in sides:
            await milliseconds(side, WARM_UP)
        for _ in range(ROUNDS):
            for side, of_side in zip(sides, taken, strict=True):
                of_side.extend(await milliseconds(side, size.round_trips // ROUNDS))
    return CommandTimes(tuple(taken[0]), tuple(taken[1]))


def verdicts(found: CommandTimes) -> tuple[Verdict, ...]:
    """Compare the middle of what a task takes longer than its bare command with the bound."""
    more = percentile(found.tasks, 50) - percentile(found.bare, 50)
    return (Verdict("command agent p50, beyond its bare command's", more, Bound.AT_MOST, MOST_MORE_MS, "ms"),)


def figures(found: CommandTimes) -> tuple[Figure, ...]:
    """Return the middle and the slow end of both sides."""
    sides = {"task of a command agent": found.tasks, "bare command": found.bare}
    return tuple(
        Figure(f"{name} p{share}", percentile(values, share), "ms")
        for name, values in sides.items()
        for share in (50, 99)
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure a command agent, and judge it."""
    found = await measure(stage, size)
    return Findings(NAME, verdicts(found), figures(found), asdict(found))
