"""The dashboard's first view, in a headless Chromium, on an API over the in-memory twins."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from coditect import Agent
from coditect.api.application import POLICY
from tests.browser.checks import Loaded, barriers, processor_time
from tests.browser.stage import staged

MOST_BYTES = 300_000
FIRST_VIEW_PROCESSOR_SECONDS = 0.5


def greeter() -> Agent:
    agent = Agent("greeter", slots=4)

    @agent.capability("hello.greet")
    async def greet(name: str) -> str:
        """Greets by name."""
        return f"Hello, {name}!"

    return agent


async def test_the_fleet_page_shows_who_lives(page: Page) -> None:
    async with staged([greeter(), greeter()]) as stage:
        await page.goto(stage.url)

        await expect(page.get_by_role("heading", name="Fleet")).to_be_visible()
        await expect(page.get_by_role("row").filter(has_text="greeter-00000002")).to_contain_text("hello.greet")
        await expect(page.locator(".tile").first).to_contain_text("2")


async def test_an_empty_fleet_says_how_to_start_an_agent(page: Page) -> None:
    async with staged([]) as stage:
        await page.goto(f"{stage.url}/#/fleet")

        await expect(page.locator(".command")).to_contain_text("coditect agent run")


async def test_the_first_view_is_small_and_quick(page: Page) -> None:
    async with staged([greeter()]) as stage:
        loaded, worked = Loaded(page), await processor_time(page)
        await page.goto(stage.url)
        await page.get_by_role("table").wait_for()
        seconds, size_bytes = await worked(), await loaded.size_bytes()
        print(f"first view: {seconds:.2f} s of a processor, {size_bytes} bytes")

        assert all(response.ok for response in loaded.responses)
        assert size_bytes < MOST_BYTES
        assert seconds < FIRST_VIEW_PROCESSOR_SECONDS


async def test_a_browser_may_run_only_what_the_dashboard_serves(page: Page) -> None:
    async with staged([]) as stage:
        answer = await page.goto(stage.url)
        assert answer is not None

        assert answer.headers["content-security-policy"] == POLICY
        assert "unsafe" not in POLICY
        assert (
            (await page.goto(f"{stage.url}/vendor/preact.mjs") or answer)
            .headers["content-type"]
            .startswith(("text/javascript", "application/javascript"))
        )


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_fleet_page_has_no_barriers(page: Page, theme: str) -> None:
    async with staged([greeter()]) as stage:
        await page.goto(stage.url)
        await page.get_by_label("Theme").select_option(theme)
        await page.get_by_role("table").wait_for()

        assert await barriers(page) == []


async def test_the_pages_are_reached_by_the_keyboard(page: Page) -> None:
    async with staged([]) as stage:
        await page.goto(stage.url)
        await page.get_by_role("heading", name="Fleet").wait_for()
        await page.get_by_role("link", name="Coditect").focus()
        for _ in range(4):
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")

        await expect(page.get_by_role("heading", name="Workflows")).to_be_focused()


async def test_the_views_of_the_fleet_share_one_stream_of_events(page: Page) -> None:
    streams = list[str]()
    page.on("request", lambda request: streams.append(request.url) if "/v1/events" in request.url else None)
    async with staged([greeter()]) as stage:
        await page.goto(stage.url)
        await expect(page.get_by_role("row").filter(has_text="greeter-00000001")).to_be_visible()
        async with page.expect_response(lambda answer: "/v1/agents" in answer.url):
            await stage.client.request("hello.greet", "ada")

    assert len(streams) == 1


async def test_the_table_of_agents_fits_into_1200_pixels(page: Page) -> None:
    await page.set_viewport_size({"width": 1200, "height": 800})
    async with staged([greeter(), greeter()]) as stage:
        await page.goto(stage.url)
        await page.get_by_role("row").filter(has_text="greeter-00000002").wait_for()

        beyond = await page.evaluate(
            "[...document.querySelectorAll('main, main *')].filter(one => one.scrollWidth > one.clientWidth + 1 "
            "&& ['auto', 'scroll'].includes(getComputedStyle(one).overflowX)).map(one => "
            "[one.className, one.scrollWidth, one.clientWidth])"
        )
        assert beyond == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= 1200


async def test_the_architecture_page_draws_the_agents_that_live(page: Page) -> None:
    async with staged([greeter(), greeter()]) as stage:
        await page.goto(f"{stage.url}/#/architecture")
        await expect(page.locator(".node.box").filter(has_text="greeter")).to_contain_text("2 processes")
        assert await barriers(page) == []
        await page.get_by_role("tab", name="Components").click()

        await expect(page.get_by_role("table").first).to_contain_text("coditect.submit")
        await expect(page.locator(".node.box").filter(has_text="coditect.submit")).to_be_visible()
        assert await barriers(page) == []
