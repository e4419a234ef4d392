"""`examples/pr_deployment.yaml` on a Git server's pull requests and a real service; review and tests are given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents.demo.deployment import BROKEN, FLOW, GOOD, POLICY, make_shop
from agents.deployer import ChangeRequest, DeployRequest, ProbeRequest, deployer
from agents.deployment.service import Service
from agents.reviewer import Review
from agents.tester import TestsReport, TestsRequest
from coditect import Agent
from coditect.testing import TestFleet
from coditect.workflow.approvals.file import load_policy
from coditect.workflow.approvals.policy import ApprovalCase, Ruling, Subject
from coditect.workflow.definition import Node
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.expressions import Account, Scope, node_input
from coditect.workflow.states import WorkflowState
from tests.servers import ROOT
from tests.unit.agents.git_server import TOKEN, GitServerStub, git_server
from tests.unit.agents.test_pull_requests import COUNTS, FINDING, GREEN, RED

EXAMPLES = sorted((ROOT / "examples" / "deployments").glob("*.json"))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GitServerStub, Service]]:
    """The shop's repository on a Git server, and its service below the fleet's folder."""
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(tmp_path))
    monkeypatch.setenv("CODITECT_GIT_HOSTS", "127.0.0.1")
    monkeypatch.setenv("CODITECT_PRIVATE_ADDRESSES", "git")
    monkeypatch.setenv("CODITECT_GIT_TOKEN", TOKEN)
    repository, folder = make_shop(tmp_path / "shop")
    try:
        with git_server("gitea", repository) as stub:
            yield stub, Service(folder)
    finally:
        Service(folder).stop()


def checkers(tests: TestsReport) -> Agent:
    """An agent in place of reviewer and tester."""
    agent = Agent("checkers", slots=4)

    @agent.capability("code.review")
    async def review(task: dict[str, Any]) -> Review:
        return Review(findings=[FINDING] if "diff" in task else [], counts=COUNTS, files=1)

    @agent.capability("tests.run")
    async def run(task: TestsRequest) -> TestsReport:
        assert (Path(task.root) / "test_prices.py").exists()
        return tests

    return agent


async def deployed(
    stub: GitServerStub, service: Service, *, tests: TestsReport = GREEN, denied: str = ""
) -> tuple[WorkflowState, list[str]]:
    """Run the workflow for pull request 7, and answer its questions; return how it ended, and who was asked."""
    given = {"repo_url": f"{stub.url}/ada/shop", "pr_number": 7, "service": str(service.folder)}
    asked = []
    async with TestFleet(agents=[deployer, checkers(tests)], stuck_after="60s") as fleet:
        run = await fleet.client.start(load_workflow(ROOT / FLOW), given)
        while (state := await run.state()) not in ENDED:
            async for question in fleet.client.approvals.list():
                asked.append(question.node)
                await (run.deny if question.node == denied else run.grant)(question.node, by="ada")
            await asyncio.sleep(0.5)
    return state, asked


ENDED = {WorkflowState.COMPLETED, WorkflowState.COMPENSATED, WorkflowState.REJECTED, WorkflowState.FAILED}


def reported(stub: GitServerStub) -> list[tuple[str, str]]:
    return [(status["context"].partition("/")[2], status["state"]) for status in stub.statuses]


async def test_a_pull_request_is_checked_approved_released_and_probed(shop: tuple[GitServerStub, Service]) -> None:
    stub, service = shop
    head = stub.open(7, GOOD)

    assert await deployed(stub, service) == (WorkflowState.COMPLETED, ["run_it", "ship_it"])
    assert service.version == head
    assert reported(stub) == [("checks", "pending"), ("checks", "success"), ("release", "success")]
    assert [comment["path"] for comment in stub.reviews[0]["comments"]] == ["prices.py"]


async def test_a_pull_request_that_breaks_the_service_is_rolled_back(shop: tuple[GitServerStub, Service]) -> None:
    stub, service = shop
    before = service.version
    stub.open(7, BROKEN)

    assert (await deployed(stub, service))[0] is WorkflowState.COMPENSATED
    assert service.version == before
    assert service.probe(str(before), within_seconds=20)
    assert reported(stub) == [("checks", "pending"), ("checks", "success"), ("release", "failure")]


async def test_a_pull_request_with_red_tests_asks_nobody_and_says_so(shop: tuple[GitServerStub, Service]) -> None:
    stub, service = shop
    before = service.version
    stub.open(7, GOOD)

    assert await deployed(stub, service, tests=RED) == (WorkflowState.REJECTED, ["run_it"])
    assert service.version == before
    assert reported(stub) == [("checks", "pending"), ("checks", "failure")]


async def test_code_that_nobody_lets_run_is_not_run_and_says_so(shop: tuple[GitServerStub, Service]) -> None:
    stub, service = shop
    stub.open(7, GOOD, source="eve/shop")

    assert await deployed(stub, service, denied="run_it") == (WorkflowState.REJECTED, ["run_it"])
    assert reported(stub)[-1] == ("checks", "failure")
    assert "no tests" in stub.reviews[0]["body"]


@pytest.mark.parametrize(
    ("node", "change", "action"),
    [
        ("run_it", {"fork": False, "lines": 900}, Ruling.APPROVE),
        ("run_it", {"fork": True, "lines": 1}, Ruling.ASK),
        ("run_it", {}, Ruling.ASK),
        ("ship_it", {"fork": False, "lines": 200}, Ruling.APPROVE),
        ("ship_it", {"fork": False, "lines": 201}, Ruling.ASK),
        ("ship_it", {"fork": True, "lines": 1}, Ruling.ASK),
    ],
)
def test_the_policy_asks_about_forks_and_large_changes(node: str, change: dict[str, Any], action: Ruling) -> None:
    case = ApprovalCase(Subject.APPROVAL, "", "pr_deployment", node, lambda: {"results": {"change": change}})

    assert load_policy(ROOT / POLICY).judge(case, Account()).action is action


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_input_of_the_examples_is_one_of_the_workflow(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = json.loads(example.read_text())
    nodes: dict[str, Node] = {node.name: node for node in load_workflow(ROOT / FLOW).nodes}
    change = {"repository": "shop/repository", "commit": "a" * 40, "pull_request": None}
    read = ChangeRequest.model_validate(node_input(nodes["change"], Scope(given, {}, {})))
    scope = Scope(given, {"change": change, "ship_it": None, "release": None}, {})
    release = DeployRequest.model_validate(node_input(nodes["release"], scope))
    probe = ProbeRequest.model_validate(node_input(nodes["probe"], scope))

    assert (read.pr_number is None) == (read.branch is not None)
    assert release.service == probe.service


def test_the_examples_have_each_kind_of_change_and_service() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "branch-to-folder",
        "pull-request-to-container",
        "pull-request-to-folder",
        "pull-request-to-kubernetes",
    ]


@pytest.mark.parametrize(
    "given",
    [
        {}, {"repository": "a"}, {"repo_url": "https://a.example/b/c"}, {"branch": "b", "pr_number": 1},
        {"repository": "a", "branch": "b", "repo_url": "https://a.example/b/c", "pr_number": 1},
        {"repository": "a", "branch": "b", "pr_number": 1},
    ],
)  # fmt: skip
def test_a_change_is_either_a_branch_or_a_pull_request(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`repository` and `branch`, or `repo_url` and `pr_number`"):
        ChangeRequest.model_validate(given)
