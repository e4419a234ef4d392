"""The demo's summary for a person, and the check whether the demo reached its goals."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap

from pydantic import BaseModel

from agents.demo.work import DemoTask
from agents.documenter import Docs, DocsRequest
from agents.reviewer import Review
from agents.summarizer import Summary
from agents.tester import TestsReport
from agents.tools.review import Severity
from coditect.workflow.states import WorkflowState

MIN_COMPLETED, MIN_PROCESSES, MIN_AT_ONCE = 101, 5, 100
_SHOWN = 5
_EXAMPLE = "README.md"
_EXAMPLE_WIDTH, _NAME_WIDTH, _EXAMPLE_LINES = 110, 14, 4
_ENVIRONMENT = os.path.relpath(sys.prefix)
NEXT = f"""
Next:
  source {_ENVIRONMENT}/bin/activate
  coditect up --detach                              a fleet of your own, which stays; `coditect down` stops it
  coditect agent list                               who is there, and what each of them can do
  coditect task submit text.summarize '{{"text": "One sentence. And another one, which is longer."}}'
  README.md, "The first agent": an agent of your own in ten lines"""


@dataclass(frozen=True, slots=True)
class Settled:
    """A task of the demo with its end: a value, an error, or no answer at all (lost)."""

    job: DemoTask
    value: BaseModel | None = None
    error: str = ""
    lost: bool = False
    agent_id: str = ""
    started_ms: int = 0
    """The start by the agent's clock, in milliseconds since the epoch; 0 when the task never started."""

    finished_ms: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts and times of a demo run, which are compared with the demo's goals."""

    completed: int
    failed: int
    lost: int
    processes: int
    at_once: int
    wall_seconds: float
    workflow: WorkflowState
    """The final state of the demo's workflow."""

    goal: str = ""
    """The sentence that says what the demo's goal missed; empty when it was reached."""

    @property
    def shortfalls(self) -> list[str]:
        """The goals that the demo did not reach, as sentences; empty on success."""
        checks = {
            f"{self.lost} tasks were lost": self.lost == 0,
            f"{self.failed} tasks failed": self.failed == 0,
            f"only {self.completed} tasks completed, not {MIN_COMPLETED}": self.completed >= MIN_COMPLETED,
            f"only {self.processes} agent processes worked, not {MIN_PROCESSES}": self.processes >= MIN_PROCESSES,
            f"only {self.at_once} handlers ran at once, not {MIN_AT_ONCE}": self.at_once >= MIN_AT_ONCE,
            f"the workflow ended as {self.workflow.value}": self.workflow is WorkflowState.COMPLETED,
        }
        return [*(said for said, reached in checks.items() if not reached), *filter(None, [self.goal])]


def total(settled: Sequence[Settled], wall_seconds: float, *, workflow: WorkflowState) -> Totals:
    """Return the totals of a demo run from the ends of its tasks and the state of its workflow."""
    completed = sum(task.value is not None for task in settled)
    lost = sum(task.lost for task in settled)
    return Totals(
        completed=completed,
        failed=len(settled) - completed - lost,
        lost=lost,
        processes=len({task.agent_id for task in settled if task.agent_id}),
        at_once=peak([(task.started_ms, task.finished_ms) for task in settled if task.started_ms]),
        wall_seconds=wall_seconds,
        workflow=workflow,
    )


def peak(spans: Sequence[tuple[int, int]]) -> int:
    """Return the largest number of spans (start, end) that overlap at one instant; touching spans do not."""
    edges = sorted([(start, 1) for start, _ in spans] + [(max(end, start + 1), -1) for start, end in spans])
    highest = running = 0
    for _, step in edges:
        running += step
        highest = max(highest, running)
    return highest


def describe(settled: Sequence[Settled], totals: Totals) -> str:
    """Return the demo's summary as plain text."""
    lines = [
        "",
        f"{totals.completed} tasks completed by {totals.processes} agent processes in {totals.wall_seconds:.1f} s",
        f"{totals.at_once} handlers at work at one instant, {totals.failed} tasks failed, {totals.lost} lost",
        *_about_agents(settled),
        "",
        *_example(settled),
        *_about_reviews([task.value for task in settled if isinstance(task.value, Review)]),
        *_about_tests([task.value for task in settled if isinstance(task.value, TestsReport)]),
        *_about_texts(settled),
        *_about_errors(settled),
    ]
    return "\n".join([*lines, *(f"NOT REACHED: {said}" for said in totals.shortfalls)])


def latest(value: BaseModel | None) -> str:
    """Return one line of text about a task's result, for the running display; empty when there is nothing to show."""
    match value:
        case Review():
            return f"reviewed {value.files} files, {sum(value.counts.values())} remarks"
        case TestsReport():
            return f"{value.passed} tests passed, {value.failed + value.errors} failed"
        case Docs():
            return f"{value.title}: {value.documented} of {value.objects} public names documented"
        case Summary(keywords=[_, *_]):
            return f"keywords: {', '.join(value.keywords[:5])}"
        case _:
            return ""


def _about_agents(settled: Sequence[Settled]) -> Iterator[str]:
    counts = Counter(task.agent_id for task in settled if task.agent_id)
    if counts:
        yield ", ".join(f"{agent_id} did {counts[agent_id]}" for agent_id in sorted(counts))


def _example(settled: Sequence[Settled]) -> Iterator[str]:
    """Yield lines that show the demo's task about README.md with its input and output, if it ended with a value."""
    for task in settled:
        if task.job.subject == _EXAMPLE and task.value is not None:
            yield f"One of them, {task.job.capability} of {task.job.subject}, answered:"
            for name, field in task.value.model_dump(mode="json", exclude_unset=True).items():
                yield from wrap(
                    ", ".join(map(str, field)) if isinstance(field, list) else str(field),
                    _EXAMPLE_WIDTH,
                    initial_indent=f"  {name:<{_NAME_WIDTH}}  ",
                    subsequent_indent=" " * (_NAME_WIDTH + 4),
                    max_lines=_EXAMPLE_LINES,
                    placeholder=" ...",
                )
            yield ""


def _about_reviews(reviews: Sequence[Review]) -> Iterator[str]:
    counts: Counter[Severity] = Counter()
    for review in reviews:
        counts.update(review.counts)
    said = ", ".join(f"{counts[severity]} {severity.value}" for severity in Severity)
    yield f"Review: {sum(review.files for review in reviews)} files, {said}"


def _about_tests(reports: Sequence[TestsReport]) -> Iterator[str]:
    passed = sum(report.passed for report in reports)
    failures = [failure for report in reports for failure in report.failures]
    skipped = sum(report.skipped for report in reports)
    yield f"Tests: {passed} passed, {len(failures)} failed, {skipped} skipped, in {len(reports)} runs"
    yield from (f"  {failure.nodeid}: {_first(failure.message)}" for failure in failures[:_SHOWN])


def _about_texts(settled: Sequence[Settled]) -> Iterator[str]:
    docs = [task.value for task in settled if isinstance(task.value, Docs)]
    summaries = [task.value for task in settled if isinstance(task.value, Summary)]
    names, documented = sum(page.objects for page in docs), sum(page.documented for page in docs)
    yield f"Docs: {len(docs)} pages written, {documented} of {names} public names documented"
    overviews = sum(task.value is not None and _asks(task.job) for task in settled)
    yield f"  {overviews} overviews on top of them were asked of the summarizer by the documenter"
    yield f"Summaries: {len(summaries)} texts, {sum(summary.sentences_read for summary in summaries)} sentences read"


def _asks(job: DemoTask) -> bool:
    return isinstance(job.input, DocsRequest) and job.input.summary


def _about_errors(settled: Sequence[Settled]) -> Iterator[str]:
    errors = [task for task in settled if task.error]
    yield from (f"  {task.job.capability} {task.job.subject}: {_first(task.error)}" for task in errors[:_SHOWN])


def _first(text: str) -> str:
    return text.strip().partition("\n")[0][:120]
