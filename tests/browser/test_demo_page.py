"""The dashboard of a kept demo: what a person does there, in Chromium, on real servers and the demo's own agents."""

from __future__ import annotations

import pytest
import yaml
from playwright.async_api import Page, expect

from tests.browser.demo import kept_demo
from tests.servers import ROOT

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.endurance, pytest.mark.timeout(240)]


async def test_a_person_submits_watches_grants_and_redrives_in_a_kept_demo(page: Page) -> None:
    flow = yaml.safe_load((ROOT / "examples" / "repository.yaml").read_text(encoding="utf-8"))
    given = {
        "packages": ["coditect/aio"],
        "tests": ["tests/unit/model/test_durations.py"],
        "folder": ".coditect/demo/releases",
    }
    async with kept_demo() as demo:
        assert demo.url, demo.said
        await page.goto(f"{demo.url}#/tasks?capability=text.summarize&key={demo.key}")
        await page.get_by_label("plain text or Markdown").fill("Agents find each other. They hand work over.")
        await page.get_by_role("button", name="Submit").click()
        await expect(page.get_by_role("region", name="Result")).to_contain_text('"sentences_read": 2')

        started = await page.request.post(
            f"{demo.url}v1/workflows", data={"workflow": flow, "input": given}, headers=demo.headers
        )
        assert started.ok, await started.text()
        await page.goto(f"{demo.url}#/workflows/{(await started.json())['id']}")
        graph = page.get_by_role("group", name="Graph of the workflow")
        await expect(graph.get_by_role("button", name="publish: blocked")).to_be_visible()
        await graph.get_by_role("button", name="ship_it: awaiting approval").click(timeout=60_000)
        await page.get_by_role("button", name="Grant").click()
        await page.get_by_label("Your name").fill("ada")
        await page.get_by_role("dialog").get_by_role("button", name="Grant").click()
        await expect(graph.get_by_role("button", name="publish: completed")).to_be_visible()

        failing = {"capability": "code.review", "input": {"path": "no/such/place"}}
        assert (await page.request.post(f"{demo.url}v1/tasks", data=failing, headers=demo.headers)).ok
        await page.goto(f"{demo.url}#/dead-letters")
        await expect(page.get_by_role("region", name="Dead letters").get_by_role("row")).to_have_count(2)
        await page.get_by_role("button", name="Preview of redrive").click()
        await page.get_by_role("button", name="Redrive", exact=True).click()
        await expect(page.get_by_text("1 letter was redriven, 0 kept.")).to_be_visible()
