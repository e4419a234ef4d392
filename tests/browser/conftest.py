"""A page of a headless Chromium; without Chromium its tests are skipped and say how to install it.

Chromium takes a second of a processor to start: a process of the run starts it once, so that these tests share an event
loop.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CODITECT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
WIDTH, HEIGHT = 1360, 860


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this folder in the event loop in which Chromium was started."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """The browser of this process of the run."""
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: `make browser` installs it, or set CODITECT_CHROMIUM=/path/to/it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(chromium: Browser) -> AsyncIterator[Page]:
    """An empty page with storage of its own; at its end the test fails if the dashboard has complained meanwhile."""
    context = await chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    page = await context.new_page()
    page.set_default_timeout(20_000)
    complaints = complaints_of(page)
    yield page
    await context.close()
    assert complaints() == []


def complaints_of(page: Page) -> Callable[[], list[str]]:
    """What a page complains of: uncaught errors, and what the content security policy refused."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda told: found.append(told.text) if "Content Security Policy" in told.text else None)
    return lambda: found
