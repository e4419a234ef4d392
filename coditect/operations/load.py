"""Load tests: the generator, which submits tasks in a closed or an open loop, the report, and the use of slots."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from coditect.errors import CoditectError, RegistryUnavailable, ResultTimeout
from coditect.model.capability import Priority
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.result import Outcome, Status
from coditect.registry.port import Registry, Search

if TYPE_CHECKING:
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


class LoadEnding(StrEnum):
    """The way in which a load test's task ended for its client: completed, failed, hung or refused."""

    COMPLETED = "completed"
    FAILED = "failed"
    """The task was answered without a value."""
    HUNG = "hung"
    """The task was accepted, but no answer came within the wait."""
    REFUSED = "refused"
    """The submit raised an error: the task was not accepted, or not known to be."""


@dataclass(frozen=True, slots=True)
class LoadAnswer:
    """A submitted task of a load test, with its end, agent and latency."""

    task_id: str | None
    """The task's id; None when the submission was refused."""
    ending: LoadEnding
    finished_at_seconds: float
    """The instant of the end, in seconds since the start of the run."""
    latency_seconds: float
    """The seconds from the instant at which the task was due (open loop) or submitted (closed loop) to its end."""
    agent_id: str | None = None
    problem: str = ""
    """The reason why the task has no value; empty with a value."""


@dataclass(frozen=True, slots=True)
class Effect:
    """An execution of a load test's task, as an agent wrote it to the effect log: agent, process and attempt."""

    agent_id: str
    pid: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The latency of completed tasks at several percentiles, in milliseconds."""

    p50: float
    p95: float
    p99: float
    highest: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The summary of a load test: counts, rates, latencies, losses and repetitions."""

    endings: Mapping[LoadEnding, int]
    elapsed_seconds: float
    throughput_per_second: float
    latency_ms: Percentiles
    problems: Mapping[str, int]
    agents: Mapping[str, int]
    """The number of answered tasks by agent."""
    hung: tuple[str, ...]
    submitted_twice: tuple[str, ...]
    """Ids that two submissions got: always empty, unless the client is broken."""
    effects_compared: bool
    lost: tuple[str, ...]
    """Ids of tasks that were accepted and left no line in the effect log, answered or not."""
    repeated: Mapping[str, tuple[Effect, ...]]
    """Ids of tasks that ran more than once (at-least-once execution), with each of their effects."""
    executions: int
    """The number of executions in the effect log that belong to this run's tasks."""
    utilisation: float | None = None
    """The share of the fleet's slots that were in use while work was queued, 0 to 1; None when none was queued."""

    @property
    def ok(self) -> bool:
        """Tell whether every task was accepted once, answered with a value and, if agents log executions, executed."""
        unhappy = self.endings[LoadEnding.FAILED] + self.endings[LoadEnding.HUNG] + self.endings[LoadEnding.REFUSED]
        return not (unhappy or self.lost or self.submitted_twice)


def parse_effects(lines: Iterable[str], task_ids: frozenset[str]) -> dict[str, list[Effect]]:
    """Parse the executions of the given tasks from log lines ``<task_id> <agent_id> <pid> <attempt>``."""
    effects: dict[str, list[Effect]] = {}
    for line in lines:
        words = line.split()
        if len(words) == 4 and words[0] in task_ids and words[2].isdecimal() and words[3].isdecimal():
            effects.setdefault(words[0], []).append(Effect(words[1], int(words[2]), int(words[3])))
    return effects


def read_effects(log: Path, answers: Iterable[LoadAnswer]) -> dict[str, list[Effect]] | None:
    """Read the executions of a load test's tasks from the file in which agents log them; None when there is no file."""
    if not log.is_file():
        return None
    ids = frozenset(answer.task_id for answer in answers if answer.task_id is not None)
    with log.open(encoding="utf-8", errors="replace") as lines:
        return parse_effects(lines, ids)


def summarize(
    answers: Sequence[LoadAnswer],
    effects: Mapping[str, Sequence[Effect]] | None,
    *,
    utilisation: float | None = None,
) -> LoadReport:
    """Build the report of a load test from the answers to its tasks and the executions in its effect log, if any."""
    endings = Counter(answer.ending for answer in answers)
    elapsed = max((answer.finished_at_seconds for answer in answers), default=0.0)
    completed = [answer for answer in answers if answer.ending is LoadEnding.COMPLETED]
    ids = Counter(answer.task_id for answer in answers if answer.task_id is not None)
    done_ids = [one.task_id for one in answers if one.task_id and one.ending is not LoadEnding.FAILED]
    known = effects or {}
    return LoadReport(
        endings={ending: endings[ending] for ending in LoadEnding},
        elapsed_seconds=elapsed,
        throughput_per_second=len(completed) / elapsed if elapsed else 0.0,
        latency_ms=percentiles([answer.latency_seconds * 1000 for answer in completed]),
        problems=dict(Counter(answer.problem for answer in answers if answer.problem).most_common()),
        agents=dict(Counter(answer.agent_id for answer in answers if answer.agent_id).most_common()),
        hung=tuple(one.task_id for one in answers if one.task_id and one.ending is LoadEnding.HUNG),
        submitted_twice=tuple(task_id for task_id, times in ids.items() if times > 1),
        effects_compared=effects is not None,
        lost=() if effects is None else tuple(task_id for task_id in done_ids if not effects.get(task_id)),
        repeated={task_id: tuple(lines) for task_id, lines in known.items() if len(lines) > 1},
        executions=sum(len(lines) for lines in known.values()),
        utilisation=utilisation,
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """Return the nearest-rank percentiles of latencies in milliseconds; zeros when there are none."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles(0.0, 0.0, 0.0, 0.0)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Percentiles(rank(0.50), rank(0.95), rank(0.99), ordered[-1])


UTILIZATION_CHECK_SECONDS = 1.0
"""The pause between two looks: agents tell their load once a second."""
STALE_LOOKS = 1
"""The looks after the first one at queued work that do not count: the load told may be from before it."""


@dataclass(slots=True)
class Utilisation:
    """The sums of busy slots and of all slots, taken each second while a load test's tasks outnumber the slots.

    The first look of such a time does not count: the agents' figures may be older.
    """

    busy: int = 0
    slots: int = 0
    looks: int = 0
    _queued: int = 0

    @property
    def share(self) -> float | None:
        """The share of slots in use while tasks outnumbered slots, 0 to 1; None if no two checks in a row saw that."""
        return self.busy / self.slots if self.slots else None

    async def watch(self, registry: Registry, capability: str, in_flight: Callable[[], int]) -> None:
        """Once a second, until canceled, call `look` with the agents that offer a capability and the tasks in flight.

        A registry that does not answer costs its looks.
        """
        while True:
            await asyncio.sleep(UTILIZATION_CHECK_SECONDS)
            try:
                self.look(await registry.find(Search(capability)), in_flight())
            except RegistryUnavailable:
                self.look((), 0)

    def look(self, agents: Iterable[AgentRecord], in_flight: int) -> None:
        """Add the agents' busy and total slots to the sums, if tasks outnumber slots now and did at the last call."""
        living = [agent for agent in agents if agent.load.status is not AgentStatus.DRAINING]
        slots = sum(one.registration.slots for one in living)
        self._queued = self._queued + 1 if in_flight > slots else 0
        if self._queued > STALE_LOOKS:
            self.busy += sum(one.load.running for one in living)
            self.slots += slots
            self.looks += 1
