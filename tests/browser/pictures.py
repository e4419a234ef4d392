"""The pictures of the dashboard for README and docs, of a demo that stays: `make screenshots`."""

from __future__ import annotations

import asyncio

import yaml
from playwright.async_api import Page, async_playwright, expect

from tests.browser.conftest import CHROMIUM, HEIGHT, WIDTH
from tests.browser.demo import Kept, kept_demo
from tests.servers import ROOT

FOLDER = ROOT / "docs" / "pictures"


async def take_pictures() -> None:
    """Write the pictures of the fleet and of a workflow that asks for an approval, in the light and the dark theme."""
    FOLDER.mkdir(exist_ok=True)
    async with kept_demo() as demo, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM)
        context = await browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        page = await context.new_page()
        await page.goto(f"{demo.url}#/fleet?key={demo.key}")
        await expect(page.get_by_role("region", name="Agents").get_by_role("row").nth(6)).to_be_visible()
        await page.screenshot(path=FOLDER / "fleet.png")
        await _workflow(page, demo)
        await page.emulate_media(color_scheme="dark")
        await page.screenshot(path=FOLDER / "workflow.png")
        await browser.close()


async def _workflow(page: Page, demo: Kept) -> None:
    flow = yaml.safe_load((ROOT / "examples" / "repository.yaml").read_text(encoding="utf-8"))
    given = {
        "packages": ["coditect/aio"],
        "tests": ["tests/unit/model/test_durations.py"],
        "folder": ".coditect/demo/releases",
    }
    started = await page.request.post(
        f"{demo.url}v1/workflows", data={"workflow": flow, "input": given}, headers=demo.headers
    )
    await page.goto(f"{demo.url}#/workflows/{(await started.json())['id']}")
    graph = page.get_by_role("group", name="Graph of the workflow")
    await graph.get_by_role("button", name="ship_it: awaiting approval").click(timeout=60_000)


if __name__ == "__main__":
    if CHROMIUM is None:
        raise SystemExit("Chromium is missing: apt-get install chromium, or CODITECT_CHROMIUM=/path/to/it")
    asyncio.run(take_pictures())
    print(f"The pictures are in {FOLDER.relative_to(ROOT)}.")
