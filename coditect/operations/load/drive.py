"""The load generator: submits tasks through the public client, in a closed or an open loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coditect.errors import CoditectError, ResultTimeout
from coditect.model.capability import Priority
from coditect.model.result import Outcome, Status
from coditect.operations.load.report import LoadAnswer, LoadEnding

if TYPE_CHECKING:  # it is heavy, and a report does without
    from coditect.client.client import Client

_GOLDEN = 0.618033988749895


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The plan of a load test: number and length of its tasks, and the rate of their submission."""

    tasks: int
    concurrency: int
    """The number of tasks in flight in a closed loop, in which each end of a task submits the next."""
    per_second: float | None
    """The submissions per second in an open loop, regardless of concurrency; None means a closed loop."""
    min_ms: int
    max_ms: int
    capability: str
    priority: Priority
    wait_seconds: float
    """How long an answer may take before the task counts as hung."""

    def milliseconds(self, number: int) -> int:
        """Return how many milliseconds the n-th task runs: spread evenly over the plan's range, alike in every test."""
        return self.min_ms + int((number * _GOLDEN) % 1.0 * (self.max_ms - self.min_ms + 1))


@dataclass(slots=True)
class LoadCounts:
    """The counts of a running load test, which a progress display reads."""

    submitted: int = 0
    answers: list[LoadAnswer] = field(default_factory=list)
    failed: int = 0
    in_flight: int = 0

    def add(self, answer: LoadAnswer) -> None:
        """Add one more ended task to the counts, as failed unless the task was completed."""
        self.answers.append(answer)
        self.failed += answer.ending is not LoadEnding.COMPLETED


async def drive(client: Client, load: LoadPlan, counts: LoadCounts) -> None:
    """Submit all tasks of a load test and wait for their ends, counted in `counts`; a failed task raises nothing.

    The counts may be read while the call runs. What was submitted goes on when the caller is canceled.
    """
    if load.per_second is None:
        await _closed_loop(client, load, counts)
    else:
        await _open_loop(client, load, counts, load.per_second)


async def _closed_loop(client: Client, load: LoadPlan, counts: LoadCounts) -> None:
    started = asyncio.get_running_loop().time()
    numbers = iter(range(load.tasks))
    async with asyncio.TaskGroup() as group:
        for _ in range(min(load.concurrency, load.tasks)):
            group.create_task(_work_through(client, load, counts, numbers, started=started))


async def _work_through(
    client: Client, load: LoadPlan, counts: LoadCounts, numbers: Iterator[int], *, started: float
) -> None:
    loop = asyncio.get_running_loop()
    for number in numbers:
        await _one(client, load, counts, number, started=started, due=loop.time())


async def _open_loop(client: Client, load: LoadPlan, counts: LoadCounts, per_second: float) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(load.tasks):
            # Latency counts from when it was due: a generator that falls behind must not hide a queue
            # (coordinated omission).
            due = started + number / per_second
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(_one(client, load, counts, number, started=started, due=due))


async def _one(client: Client, load: LoadPlan, counts: LoadCounts, number: int, *, started: float, due: float) -> None:
    loop = asyncio.get_running_loop()
    task_id: str | None = None
    outcome: Outcome | CoditectError
    counts.in_flight += 1
    try:
        value = {"milliseconds": load.milliseconds(number)}
        handle = await client.submit(load.capability, value, priority=load.priority)
        task_id = handle.task_id
        counts.submitted += 1
        outcome = await handle.outcome(timeout=load.wait_seconds)
    except CoditectError as error:
        outcome = error
    finally:
        counts.in_flight -= 1
    now = loop.time()
    ending, problem = _ending(task_id, outcome)
    agent = outcome.agent_id if isinstance(outcome, Outcome) else None
    counts.add(LoadAnswer(task_id, ending, now - started, now - due, agent, problem))


def _ending(task_id: str | None, outcome: Outcome | CoditectError) -> tuple[LoadEnding, str]:
    if isinstance(outcome, Outcome):
        if outcome.status is Status.COMPLETED:
            return LoadEnding.COMPLETED, ""
        reason = outcome.failure.reason if outcome.failure else outcome.status.value
        return LoadEnding.FAILED, reason
    if task_id is None:
        return LoadEnding.REFUSED, f"{type(outcome).__name__}: {outcome.sentence}"
    if isinstance(outcome, ResultTimeout):
        return LoadEnding.HUNG, "no answer in time"
    return LoadEnding.FAILED, f"{type(outcome).__name__}: {outcome.sentence}"
