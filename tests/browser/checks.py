"""What a test asks of a page: whether axe-core finds a barrier in it, and how much was loaded for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
from playwright.async_api import Page, Response

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RUN = "axe.run().then(found => found.violations.map(one => [one.id, one.nodes.map(node => node.html)]))"


async def barriers(page: Page) -> list[Any]:
    """The rules of accessibility that the page breaks, each with its elements."""
    if not await page.evaluate("typeof axe === 'object'"):
        await page.evaluate(AXE.read_text(encoding="utf-8"))
    found: list[Any] = await page.evaluate(RUN)
    return found


async def processor_time(page: Page) -> Callable[[], Awaitable[float]]:
    """Measure how long the page's main thread has worked since now, in seconds of a processor.

    On a machine that is busy with something else a page takes longer, and works as much.
    """
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})

    async def worked() -> float:
        metrics = (await session.send("Performance.getMetrics"))["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

    before = await worked()

    async def since() -> float:
        return await worked() - before

    return since


class Loaded:
    """The files that a page loads of the dashboard, without the API's answers."""

    def __init__(self, page: Page) -> None:
        self.responses: list[Response] = []
        page.on("response", lambda response: self.responses.append(response) if "/v1/" not in response.url else None)

    async def size_bytes(self) -> int:
        """How many bytes the bodies have."""
        return sum([len(await one.body()) for one in self.responses])
