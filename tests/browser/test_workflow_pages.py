"""The dashboard's pages of workflows and approvals, in a headless Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from playwright.async_api import Page, expect

from coditect import Agent
from coditect.client.workflow_run import WorkflowRun
from coditect.telemetry.tracing import NO_TRACING, Tracing
from coditect.wire.json import dumps
from coditect.workflow.documents.file import read_workflow
from tests.browser.checks import barriers, processor_time
from tests.browser.stage import Stage, staged
from tests.unit.telemetry.tracing_scene import tracing as traced

DRAWN_PROCESSOR_SECONDS = 1.0
RELEASE = {
    "name": "release",
    "nodes": {
        "fetch": {"task": "work.echo", "input": {"files": 3}},
        "tests": {"task": "work.gate", "after": ["fetch"], "input": {}},
        "ship_it": {"approval": "Ship it?", "after": ["tests"]},
        "publish": {"task": "work.echo", "after": ["ship_it"], "input": "out"},
    },
}
FAILING = {
    "name": "failing",
    "nodes": {
        "fetch": {"task": "work.echo", "input": 1},
        "lint": {"task": "work.fail", "after": ["fetch"], "input": {}, "retry": {"max_attempts": 1}},
    },
}


@dataclass(frozen=True, slots=True)
class Works:
    """A stage with an agent whose task `work.gate` ends when the test says so."""

    stage: Stage
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, document: dict[str, Any]) -> WorkflowRun:
        return await self.stage.client.start(read_workflow(dumps(document), is_json=True), {}, labels={"team": "red"})


@asynccontextmanager
async def works(*, tracing: Tracing = NO_TRACING, trace_url: str | None = None) -> AsyncIterator[Works]:
    agent, gate = Agent("worker", slots=8), asyncio.Event()

    @agent.capability("work.echo")
    async def echo(task: Any) -> Any:
        return task

    @agent.capability("work.gate")
    async def wait(task: Any) -> str:
        await gate.wait()
        return "passed"

    @agent.capability("work.fail")
    async def fail(task: Any) -> str:
        raise OSError("no such file")

    async with staged([agent], tracing=tracing, trace_url=trace_url) as stage:
        yield Works(stage, gate)


async def test_the_graph_moves_with_the_workflow_until_its_approval_is_granted(page: Page) -> None:
    async with works() as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows")
        await page.get_by_role("link", name="release").click()
        graph = page.get_by_role("group", name="Graph of the workflow")

        await expect(graph.get_by_role("button", name="tests: working")).to_be_visible()
        await expect(graph.get_by_role("button", name="publish: blocked")).to_be_visible()
        at.gate.set()
        await graph.get_by_role("button", name="ship_it: awaiting approval").click()
        await page.get_by_role("button", name="Grant").click()
        await page.get_by_label("Your name").fill("ada")
        await page.get_by_label("Comment").fill("reviewed")
        await page.get_by_role("dialog").get_by_role("button", name="Grant").click()

        await expect(graph.get_by_role("button", name="publish: completed")).to_be_visible()
        await expect(page.get_by_role("heading", level=1)).to_contain_text("completed")
        assert await run.result(timeout="10s") == "out"


async def test_a_click_on_a_failed_node_shows_its_error_and_runs_it_again(page: Page) -> None:
    async with works() as at:
        run = await at.start(FAILING)
        await run.wait(timeout="20s")
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        await page.get_by_role("button", name="lint: failed").click()
        panel = page.get_by_role("complementary", name="Node lint")

        await expect(panel.get_by_text("no such file").first).to_be_visible()
        await expect(panel.get_by_role("region", name="Attempts")).to_contain_text("worker-00000001")
        assert await barriers(page) == []
        await panel.get_by_role("button", name="Redrive").click()
        await expect(panel).to_contain_text("would begin again: lint")
        await panel.get_by_role("button", name="Run again").click()
        await expect(panel.get_by_role("region", name="Attempts").get_by_role("row")).to_have_count(3)


async def test_a_click_on_a_node_shows_its_input_its_result_and_its_trace(page: Page) -> None:
    spans = InMemorySpanExporter()
    async with works(tracing=traced(spans), trace_url="http://traces.invalid/{trace}") as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        await page.get_by_role("button", name="fetch: completed").click()
        panel = page.get_by_role("complementary", name="Node fetch")

        await expect(panel.get_by_role("region", name="Input")).to_contain_text('"files": 3')
        await expect(panel.get_by_role("region", name="Result")).to_contain_text('"files": 3')
        await panel.get_by_text("Path of the task").click()
        await expect(panel.get_by_role("listitem").filter(has_text="attempt 1").last).to_contain_text("worker-00000001")
        link = panel.get_by_role("link", name="Open in the tracing tool")
        (started,) = [one for one in spans.get_finished_spans() if one.parent is None]
        assert started.context is not None
        await expect(link).to_have_attribute("href", f"http://traces.invalid/{started.context.trace_id:032x}")
        assert await barriers(page) == []

        await page.get_by_role("button", name="ship_it: blocked").click()
        other = page.get_by_role("complementary", name="Node ship_it")
        await expect(other.get_by_role("heading", name="Trace")).to_be_visible()
        await expect(other.get_by_role("heading", name="Input")).to_have_count(0)


async def test_arrow_keys_walk_along_the_graph_and_enter_opens_a_node(page: Page) -> None:
    async with works() as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        await page.locator("[data-node=fetch]").focus()
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("Enter")

        await expect(page.get_by_role("heading", name="tests")).to_be_focused()


async def test_a_workflow_is_paused_resumed_and_canceled(page: Page) -> None:
    async with works() as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        state = page.get_by_role("heading", level=1)

        await page.get_by_role("button", name="Pause").click()
        await expect(state).to_contain_text("paused")
        await page.get_by_role("button", name="Resume").click()
        await expect(state).to_contain_text("running")
        await page.get_by_role("button", name="Cancel …").click()
        await page.get_by_label("Reason").fill("not today")
        await page.get_by_role("button", name="Cancel the workflow").click()
        await expect(state).to_contain_text("canceled")
        await expect(page.locator(".facts").first).to_contain_text("not today")


async def test_a_signal_is_kept_and_a_checkpoint_is_made_and_restored(page: Page) -> None:
    async with works() as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        await page.get_by_role("button", name="Signal …").click()
        await page.get_by_label("Name").fill("paid")
        await page.get_by_label("Value").fill('{"euro": 7}')
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_text("paid is kept until a node awaits it.")).to_be_visible()

        at.gate.set()
        await page.get_by_role("button", name="ship_it: awaiting approval").wait_for()
        await page.get_by_role("tab", name="Checkpoints").click()
        row = page.get_by_role("row").filter(has_text="fetch")
        await row.get_by_role("button", name="Restore …").click()
        await expect(row).to_contain_text("tests")
        await row.get_by_role("button", name="Restore to fetch").click()
        await page.get_by_role("tab", name="History").click()
        await expect(page.locator(".history")).to_contain_text("workflow.restored")


async def test_the_views_of_a_workflow_have_no_barriers(page: Page) -> None:
    async with works() as at:
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        await page.get_by_role("button", name="tests: working").wait_for()
        for tab in ("Graph", "Nodes", "Timeline", "History", "Checkpoints"):
            await page.get_by_role("tab", name=tab).click()
            await expect(page.get_by_role("tabpanel")).not_to_be_empty()

            assert await barriers(page) == [], tab
        await page.get_by_role("tab", name="Timeline").click()
        await expect(page.get_by_role("region", name="Timeline")).to_contain_text("fetch")


async def test_the_list_is_filtered(page: Page) -> None:
    async with works() as at:
        await at.start(RELEASE)
        run = await at.start(FAILING)
        await run.wait(timeout="20s")
        await page.goto(f"{at.stage.url}/#/workflows")
        rows = page.get_by_role("region", name="Workflows").get_by_role("row")

        await expect(rows).to_have_count(3)
        await page.get_by_label("State").select_option("failed")
        await expect(rows).to_have_count(2)
        await expect(rows.last).to_contain_text("failing")
        await page.get_by_label("Label").fill("team=blue")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("No workflow fits these filters.")).to_be_visible()


async def test_an_approval_is_denied_from_the_list(page: Page) -> None:
    async with works() as at:
        at.gate.set()
        run = await at.start(RELEASE)
        await page.goto(f"{at.stage.url}/#/approvals")
        asked = page.get_by_role("region", name="Approvals").get_by_role("row").filter(has_text="Ship it?")
        decided = page.get_by_role("region", name="Decisions").get_by_role("row")
        await expect(asked).to_be_visible()
        await expect(decided.nth(1)).to_contain_text("asked")
        assert await barriers(page) == []
        await asked.get_by_text("What is approved").click()
        for shown in ('"team": "red"', '"tests": "passed"'):
            await expect(asked.get_by_text(shown)).to_be_visible()
        await expect(asked.get_by_role("button", name="Grant")).to_be_visible()
        await asked.get_by_role("button", name="Deny").click()
        await page.get_by_role("dialog").get_by_label("Your name").fill("ada")
        await page.get_by_role("dialog").get_by_role("button", name="Deny").click()

        await expect(page.get_by_text("No workflow waits for an answer.")).to_be_visible()
        await expect(decided.nth(1)).to_contain_text("denied")
        await expect(decided.nth(1)).to_contain_text("ada")
        await expect(page.get_by_text("1 of 1 workflows by hand")).to_be_visible()
        assert await barriers(page) == []
        assert (await run.wait(timeout="10s")).value == "rejected"


@pytest.mark.parametrize("width", [1400, 700, 390])
async def test_map_is_one_readable_box_that_opens(page: Page, width: int) -> None:
    numbers = [*range(20)]
    flow = {
        "name": "maps",
        "nodes": {
            "first_of_the_maps": {"map": "work.echo", "over": numbers, "limit": 20, "input": {"$from": "item"}},
            "second": {
                "map": "work.echo",
                "over": numbers,
                "limit": 20,
                "input": {"$from": "item"},
                "after": ["first_of_the_maps"],
            },
            "gate": {"approval": "Ship all forty?", "after": ["second"]},
        },
    }
    await page.set_viewport_size({"width": width, "height": 800})
    async with works() as at:
        run = await at.start(flow)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")
        graph = page.get_by_role("group", name="Graph of the workflow")
        gate = graph.get_by_role("button", name="gate: awaiting approval, Ship all forty?")

        await expect(gate).to_be_visible()
        await expect(page.get_by_role("list", name="Questions")).to_contain_text("Ship all forty?")
        await expect(page.locator(".node")).to_have_count(3)
        await expect(
            graph.get_by_role("button", name="20 \N{MULTIPLICATION SIGN} second: 20 completed")
        ).to_be_visible()
        heights = await page.locator(".node .name").evaluate_all(
            "names => names.map(one => one.getBoundingClientRect().height)"
        )
        assert min(heights) >= 10
        await graph.get_by_role("button", name="20 \N{MULTIPLICATION SIGN} second").click()
        await page.get_by_role("button", name="Draw its 20 elements").click()
        await expect(page.locator(".node")).to_have_count(23)
        await page.get_by_role("button", name="Draw the map as one node").click()
        await expect(page.locator(".node")).to_have_count(3)
        assert await barriers(page) == []
        await run.cancel()


async def test_a_thousand_nodes_are_drawn_quickly(page: Page) -> None:
    nodes: dict[str, Any] = {}
    for number in range(1_000):
        before = [f"n{number - 25}", f"n{number - number % 25 - 25 + number * 7 % 25}"] if number >= 25 else []
        nodes[f"n{number}"] = {"task": "work.gate", "after": sorted(set(before)), "input": {}}
    async with works() as at:
        run = await at.start({"name": "wide", "nodes": nodes})
        worked = await processor_time(page)
        await page.goto(f"{at.stage.url}/#/workflows/{run.id}")

        await expect(page.locator(".node")).to_have_count(1_000)
        seconds = await worked()
        print(f"1,000 nodes: {seconds:.2f} s of a processor until they were drawn")
        await run.cancel()
        assert seconds < DRAWN_PROCESSOR_SECONDS


@pytest.mark.parametrize(
    ("address", "role", "text"),
    [("workflows/none", "alert", "none"), ("nowhere", "main", "There is no such page")],
)
async def test_what_is_not_there_is_told(page: Page, address: str, role: Any, text: str) -> None:
    async with works() as at:
        await page.goto(f"{at.stage.url}/#/{address}")

        await expect(page.get_by_role(role)).to_contain_text(text)
