from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.demo.flow import Flow, describe_flow, read_flow, run_flow
from agents.publisher import publisher
from coditect import Agent
from coditect.testing import TestFleet
from coditect.workflow.rows import NodeRow
from coditect.workflow.states import WorkflowState
from tests.control_plane import node_row
from tests.servers import ROOT


def quick(verdict: str = "passed") -> Agent:
    """The reference fleet's results without its work."""
    agent = Agent("quick")

    @agent.capability("code.packages")
    async def packages(task: dict[str, Any]) -> list[str]:
        return [f"{root}/part" for root in task["roots"]]

    @agent.capability("code.review")
    async def review(task: dict[str, Any]) -> dict[str, Any]:
        return {"files": 2, "findings": [{"message": f"long line in {task['path']}"}]}

    @agent.capability("tests.run")
    async def run_tests(_: dict[str, Any]) -> dict[str, Any]:
        return {"verdict": verdict, "passed": 3}

    @agent.capability("docs.generate")
    async def generate(task: dict[str, Any]) -> dict[str, Any]:
        return {"title": task["path"].replace("/", "."), "markdown": "# It\n", "documented": 4}

    return agent


async def flow_of(fleet: TestFleet, folder: Path, told: list[str]) -> Flow:
    given = {"packages": ["a/b", "c"], "folder": str(folder), "release": "1.0"}
    return await run_flow(fleet.client, read_flow(ROOT), given, say=told.append)


async def test_demo_reviews_tests_documents_asks_and_publishes(tmp_path: Path) -> None:
    told: list[str] = []

    async with TestFleet([quick(), publisher]) as fleet:
        flow = await flow_of(fleet, tmp_path, told)

    assert flow.state is WorkflowState.COMPLETED
    assert {path.name for path in (tmp_path / "1.0").iterdir()} == {"a.b.md", "c.md", "release.json"}
    assert "ship_it asks: Publish this release?  Granted by the demo, for a person." in told[-1]
    assert {row.agent for row in flow.rows if row.name == "ship_it"} == {"the demo"}
    lines = describe_flow(flow).splitlines()
    assert lines[0].startswith("Workflow repository: completed in ")
    assert [line.split()[:3] for line in lines[1:]] == [
        ["1", "packages", "completed"],
        ["2", "review", "completed"],
        ["3", "tests", "completed"],
        ["4", "docs", "completed"],
        ["5", "ship_it", "completed"],
        ["6", "publish", "completed"],
    ]
    assert "code.review, 2 times" in lines[2]
    assert "after ship_it, docs, tests, review" in lines[6]


async def test_demo_publishes_nothing_when_tests_are_red(tmp_path: Path) -> None:
    async with TestFleet([quick("failed"), publisher]) as fleet:
        flow = await flow_of(fleet, tmp_path, [])

    assert {row.name: row.state.value for row in flow.rows if row.name in ("docs", "ship_it", "publish")} == {
        "docs": "skipped",
        "ship_it": "skipped",
        "publish": "skipped",
    }
    assert not (tmp_path / "1.0").exists()


@pytest.mark.parametrize("rows", [[], [node_row("review", "blocked")]])
def test_flow_that_never_began_is_described_all_the_same(rows: list[NodeRow]) -> None:
    flow = Flow(read_flow(ROOT), WorkflowState.CANCELED, rows)

    assert describe_flow(flow).startswith("Workflow repository: canceled in 0.0 s")
