"""`examples/repository.yaml` fits the agents that it is for: each node's input is one, each result is used right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.documenter import Docs, DocsRequest, documenter, generate
from agents.publisher import ReleaseRequest, publish, publisher
from agents.reviewer import PackagesRequest, Review, ReviewRequest, packages, review, reviewer
from agents.tester import SuiteOutcome, TestsRequest, tester
from coditect import Context
from coditect.workflow.definition import Definition, Node
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.expressions import Scope, condition_holds, element_inputs, node_input
from tests.servers import ROOT
from tests.unit.agents.test_pull_requests import GREEN

REFERENCED = ("coditect/cli", "coditect/api")
"""Packages of programs that have a reference of their own: `--help`, and OpenAPI."""
FLEET = (reviewer, tester, documenter, publisher)


@pytest.fixture
def flow() -> Definition:
    known = {one.name for agent in FLEET for one in agent.capabilities}
    return load_workflow(ROOT / "examples" / "repository.yaml", capabilities=known)


def node(flow: Definition, name: str) -> Node:
    return next(one for one in flow.nodes if one.name == name)


def scope(given: Any, **results: Any) -> Scope:
    return Scope(given, results, dict.fromkeys(results, "completed"))


def test_without_an_input_every_package_here_is_reviewed(flow: Definition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = packages(PackagesRequest.model_validate(node_input(node(flow, "packages"), scope(None))))

    seen = scope(None, packages=found, tests={})
    reviews = [ReviewRequest.model_validate(one) for one in element_inputs(node(flow, "review"), seen)]
    tests = TestsRequest.model_validate(node_input(node(flow, "tests"), scope(None, review=[])))
    pages = [DocsRequest.model_validate(one) for one in element_inputs(node(flow, "docs"), seen)]

    tops = [path.parent.name for path in Path().glob("*/__init__.py")]
    inits = [path for top in tops if top not in ("tests", "examples") for path in Path(top).rglob("__init__.py")]
    ours = {str(path.parent) for path in inits}
    assert sorted(one.path or "" for one in reviews) == sorted(ours)
    assert {"coditect", "coditect/telemetry", "dispatcher", "chaos", "benchmarks"} <= ours
    written = [path for path in ours if path.startswith("coditect") and not path.startswith(REFERENCED)]
    assert sorted(one.path for one in pages) == sorted(written)
    assert [path for path in tests.paths if not Path(path).exists()] == []


async def test_results_of_the_agents_become_the_release(flow: Definition, ctx: Context, tmp_path: Path) -> None:
    given = {"packages": [str(ROOT / "coditect/registry")], "folder": str(tmp_path), "release": "1.0"}
    reviews = [
        await review(ReviewRequest.model_validate(one), ctx)
        for one in element_inputs(node(flow, "review"), scope(given))
    ]
    pages = [
        await generate(DocsRequest.model_validate(one), ctx) for one in element_inputs(node(flow, "docs"), scope(given))
    ]

    seen = scope(given, review=_plain(reviews), tests=GREEN.model_dump(mode="json"), docs=_plain(pages), ship_it=None)
    release = publish(ReleaseRequest.model_validate(node_input(node(flow, "publish"), seen)), ctx)

    assert (release.name, set(release.files)) == ("1.0", {"coditect.registry.md"})
    assert (tmp_path / "1.0" / "coditect.registry.md").read_text() == pages[0].markdown
    assert release.facts == {
        "files_reviewed": reviews[0].files,
        "worst_findings": [finding.message for finding in reviews[0].findings][:10],
        "tests_passed": GREEN.passed,
        "names_documented": pages[0].documented,
    }


@pytest.mark.parametrize("verdict", SuiteOutcome)
def test_red_tests_stop_it(flow: Definition, verdict: SuiteOutcome) -> None:
    seen = scope(None, tests=GREEN.model_copy(update={"verdict": verdict}).model_dump(mode="json"))

    assert condition_holds(node(flow, "docs"), seen) == (verdict is SuiteOutcome.PASSED)


def _plain(values: list[Review] | list[Docs]) -> list[Any]:
    return [one.model_dump(mode="json") for one in values]
