"""The demo's tasks: reviews, test runs, API references and summaries of the repository's own files."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from agents.documenter import Docs, DocsRequest
from agents.reviewer import Review, ReviewRequest
from agents.summarizer import Summary, SummaryRequest
from agents.tester import TestsReport, TestsRequest
from agents.tools.sources import find_sources
from coditect import Priority

PACKAGES = ("coditect", "agents", "dispatcher")
# Quick ones: a demo is short, and pytest's own start is the larger part of each.
TESTS = (
    "tests/unit/model/test_durations.py",
    "tests/unit/broker/test_topology.py",
    "tests/unit/agents/test_text_summarize.py",
    "tests/unit/agents/test_docs_generate.py",
)
MOST_REVIEWS, MOST_DOCS, MOST_SUMMARIES = 110, 60, 20
_SHORTEST_TEXT = 200


@dataclass(frozen=True, slots=True)
class DemoTask:
    """A task to submit in the demo: capability, title for the display, input, type of the output, and priority."""

    capability: str
    subject: str
    input: BaseModel
    output: type[BaseModel]
    priority: Priority


def plan_work(root: Path) -> list[DemoTask]:
    """Return the demo's tasks for a repository, in the order of their submission; over 100 for Coditect's own.

    Tasks that a person waits for are urgent (P0): the tests and the reviews of the modules at a package's top. Other
    reviews are normal (P1), documents and summaries are bulk (P2). Paths are relative to `root`, where the agents run.
    """
    modules = [
        Path(source.name)
        for package in PACKAGES
        if any((root / package).glob("**/*.py"))
        for source in find_sources(str(root / package), ["**/*.py"])
        if source.path.stat().st_size > 0
    ]
    tests = [Path(source.name) for source in find_sources(str(root / "tests"), ["**/*.py"])]
    return [
        *_test_runs(root),
        *_reviews(root, (modules + tests)[:MOST_REVIEWS]),
        *_references(root, [module for module in modules if _parse(module)][:MOST_DOCS]),
        *_summaries(root, modules),
    ]


def announce(jobs: Sequence[DemoTask]) -> str:
    """Return a sentence with the number of tasks that the demo submits, by priority."""
    counts = Counter(job.priority for job in jobs)
    urgent, normal, bulk = (counts[priority] for priority in (Priority.P0, Priority.P1, Priority.P2))
    return f"{len(jobs)} tasks ({urgent} urgent, {normal} normal, {bulk} bulk)"


def _test_runs(root: Path) -> Iterator[DemoTask]:
    for tests in TESTS:
        if (root / tests).is_file() or any((root / tests).glob("test_*.py")):
            request = TestsRequest(paths=[tests], timeout_seconds=60)
            yield DemoTask("tests.run", tests, request, TestsReport, Priority.P0)


def _reviews(root: Path, modules: list[Path]) -> Iterator[DemoTask]:
    for module in modules:
        name = module.relative_to(root)
        priority = Priority.P0 if len(name.parts) == 2 else Priority.P1
        yield DemoTask("code.review", str(name), ReviewRequest(path=str(name)), Review, priority)


def _references(root: Path, modules: list[Path]) -> Iterator[DemoTask]:
    for module in modules:
        name = str(module.relative_to(root))
        yield DemoTask("docs.generate", name, DocsRequest(path=name, summary=True), Docs, Priority.P2)


def _summaries(root: Path, modules: list[Path]) -> Iterator[DemoTask]:
    texts = [*_pages(root), *_docstrings(root, modules)]
    for name, text in texts[:MOST_SUMMARIES]:
        yield DemoTask("text.summarize", name, SummaryRequest(text=text, sentences=2), Summary, Priority.P2)


def _pages(root: Path) -> Iterator[tuple[str, str]]:
    for page in sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")]):
        text = page.read_text(encoding="utf-8")
        if _SHORTEST_TEXT <= len(text) <= 500_000:
            yield str(page.relative_to(root)), text


def _docstrings(root: Path, modules: list[Path]) -> Iterator[tuple[str, str]]:
    for module in modules:
        text = ast.get_docstring(_parse(module) or ast.Module([], [])) or ""
        if len(text) >= _SHORTEST_TEXT:
            yield f"{module.relative_to(root)} (docstring)", text


def _parse(module: Path) -> ast.Module | None:
    """Return a file's syntax tree; None when the file does not parse, for instance amid an edit."""
    try:
        return ast.parse(module.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # ValueError: null bytes, or no UTF-8
        return None
