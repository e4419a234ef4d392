"""The report of a load test, which compares submitted tasks with their answers and their logged executions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


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


def report_json(report: LoadReport) -> dict[str, object]:
    """Return the report of a load test as JSON values for `--output json`."""
    latency = report.latency_ms
    return {
        "ok": report.ok,
        "submitted": sum(report.endings.values()),
        **{ending.value: count for ending, count in report.endings.items()},
        "lost": len(report.lost) if report.effects_compared else None,
        "elapsed_seconds": round(report.elapsed_seconds, 3),
        "throughput_per_second": round(report.throughput_per_second, 1),
        "utilisation": None if report.utilisation is None else round(report.utilisation, 3),
        "latency_ms": {
            "p50": round(latency.p50, 1),
            "p95": round(latency.p95, 1),
            "p99": round(latency.p99, 1),
            "max": round(latency.highest, 1),
        },
        "executions": report.executions if report.effects_compared else None,
        "duplicates": sum(len(lines) - 1 for lines in report.repeated.values()),
        "repeated_ids": {
            task_id: [{"agent": one.agent_id, "pid": one.pid, "attempt": one.attempt} for one in lines]
            for task_id, lines in report.repeated.items()
        },
        "lost_ids": report.lost,
        "hung_ids": report.hung,
        "submitted_twice_ids": report.submitted_twice,
        "problems": dict(report.problems),
        "agents": dict(report.agents),
    }
