"""A page of a headless Chromium; without Chromium its tests are skipped and say how to install it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable

import pytest
from playwright.async_api import Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CODITECT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
WIDTH, HEIGHT = 1360, 860


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """An empty page; at its end the test fails if the dashboard has complained meanwhile."""
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: `make browser` installs it, or set CODITECT_CHROMIUM=/path/to/it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM)
        context = await browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        page = await context.new_page()
        page.set_default_timeout(20_000)
        complaints = complaints_of(page)
        yield page
        await browser.close()
    assert complaints() == []


def complaints_of(page: Page) -> Callable[[], list[str]]:
    """What a page complains of: uncaught errors, and what the content security policy refused."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda told: found.append(told.text) if "Content Security Policy" in told.text else None)
    return lambda: found
