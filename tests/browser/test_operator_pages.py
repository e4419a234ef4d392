"""The dashboard's pages of tasks, queues, dead letters, schedules, locks, breakers and events, in Chromium."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Page, expect

from coditect import Agent, Retry
from coditect.errors import LockLost
from coditect.operations import scorecard
from coditect.wire.json import dumps
from coditect.workflow.documents.file import read_workflow
from tests.browser.checks import barriers
from tests.browser.stage import Stage, staged

EMPTY_PAGES = (
    "queues", "tasks", "workflows", "approvals", "threads", "handoffs", "dead-letters", "schedules", "locks",
    "breakers",
)  # fmt: skip
NIGHTLY = {"name": "nightly", "nodes": {"sum": {"task": "text.count", "input": {"text": "a b"}}}}


@dataclass
class Count:
    """What is counted, and how."""

    text: str
    lines: bool = False
    words: list[str] = field(default_factory=list)
    most: int | None = None


@asynccontextmanager
async def counting() -> AsyncIterator[Stage]:
    agent = Agent("counter", slots=4)

    @agent.capability("text.count", description="Counts words.")
    async def count(task: Count) -> dict[str, Any]:
        words = task.text.split("\n") if task.lines else task.text.split()
        return {"count": len(words), "among": [word for word in words if word in task.words]}

    @agent.capability("text.fail", retry=Retry(max_attempts=1))
    async def fail(task: Any) -> None:
        raise ValueError("cannot count this")

    async with staged([agent]) as stage:
        yield stage


async def test_a_task_is_submitted_by_the_form_of_its_schema(page: Page) -> None:
    async with counting() as stage:
        await page.goto(f"{stage.url}/#/tasks?capability=text.count")
        await expect(page.get_by_text("Counts words.")).to_be_visible()
        assert await barriers(page) == []
        await page.get_by_role("button", name="Add to Words").click()
        await page.get_by_label("Words 1", exact=True).fill("b")
        await page.get_by_label("Most").fill("many")
        await page.get_by_role("button", name="Submit").click()
        await expect(page.get_by_role("alert")).to_contain_text("is no number")
        await page.get_by_label("Most").fill("")
        await page.get_by_label("Text", exact=True).fill("a b c")
        await page.get_by_role("button", name="Submit").click()

        result = page.get_by_role("region", name="Result")
        await expect(result).to_contain_text('"count": 3')
        await expect(result).to_contain_text('"b"')
        assert await barriers(page) == []


async def test_a_task_is_submitted_as_json_and_its_failure_is_shown(page: Page) -> None:
    async with counting() as stage:
        await page.goto(f"{stage.url}/#/tasks?capability=text.fail")
        await page.get_by_label("JSON").or_(page.get_by_label("Value")).first.fill('{"any": 1}')
        await page.get_by_role("button", name="Submit").click()

        await expect(page.get_by_role("alert")).to_contain_text("ValueError: cannot count this")
        await page.get_by_role("link", name="New task").click()
        await expect(page.get_by_role("region", name="Tasks of this tab")).to_contain_text("text.fail")


async def test_queues_are_listed_by_capability_and_level(page: Page) -> None:
    async with counting() as stage:
        await page.goto(f"{stage.url}/#/queues")

        await expect(page.get_by_role("row").filter(has_text="text.count")).to_have_count(3)
        assert await barriers(page) == []


async def test_dead_letters_are_searched_previewed_and_redriven(page: Page) -> None:
    async with counting() as stage:
        for number in range(3):
            await stage.client.submit("text.fail", {"number": number})
        await page.goto(f"{stage.url}/#/dead-letters")
        rows = page.get_by_role("region", name="Dead letters").get_by_role("row")
        await expect(rows).to_have_count(4)
        assert await barriers(page) == []
        await page.get_by_label("Contains").fill('"number":1')
        await page.keyboard.press("Tab")
        await expect(rows).to_have_count(2)
        await rows.last.get_by_role("link").click()
        await expect(page.get_by_role("region", name="Body")).to_contain_text('"number": 1')
        assert await barriers(page) == []

        await page.go_back()
        await page.get_by_role("button", name="Preview of redrive").click()
        await expect(page.get_by_text("3 letters would be redriven, 0 kept.")).to_be_visible()
        await page.get_by_role("button", name="Redrive", exact=True).click()
        await expect(page.get_by_text("3 letters were redriven, 0 kept.")).to_be_visible()


async def test_a_dead_letter_is_chosen_and_discarded(page: Page) -> None:
    async with counting() as stage:
        for number in range(2):
            await stage.client.submit("text.fail", {"number": number})
        await page.goto(f"{stage.url}/#/dead-letters")
        rows = page.get_by_role("region", name="Dead letters").get_by_role("row")
        await expect(rows).to_have_count(3)
        await rows.nth(1).get_by_role("checkbox").check()
        await page.get_by_role("button", name="Preview of discard").click()
        await page.get_by_role("button", name="Discard for good").click()

        await expect(rows).to_have_count(2)


async def test_a_schedule_is_run_paused_and_resumed(page: Page) -> None:
    async with counting() as stage:
        definition = read_workflow(dumps(NIGHTLY), is_json=True)
        await stage.client.schedules.create("nightly", definition, {}, cron="30 2 * * *", zone="Europe/Paris")
        await page.goto(f"{stage.url}/#/schedules")
        row = page.get_by_role("row").filter(has_text="nightly")
        await expect(row).to_contain_text("30 2 * * * (Europe/Paris)")
        assert await barriers(page) == []
        await row.get_by_role("button", name="Pause").click()
        await expect(row).to_contain_text("paused")
        await row.get_by_role("button", name="Resume").click()
        await expect(row).to_contain_text("active")
        await row.get_by_role("button", name="Run now").click()
        await row.get_by_role("link", name="Started").click()

        await expect(page.get_by_role("heading", level=1)).to_contain_text("nightly")


async def test_the_graph_of_waits_is_drawn_and_a_lock_is_released(page: Page) -> None:
    async with counting() as stage:

        async def hold() -> None:
            async with stage.client.lock("repo:x"):
                holds.set()
                await asyncio.Event().wait()

        async def wait() -> None:
            async with stage.client.lock("repo:x"):
                pass

        holds, holding = asyncio.Event(), asyncio.create_task(hold())
        await holds.wait()
        waiting = asyncio.create_task(wait())
        await page.goto(f"{stage.url}/#/locks")
        rows = page.get_by_role("region", name="Locks").get_by_role("row")

        await expect(rows).to_have_count(3)
        await expect(page.get_by_role("img", name="waits for repo:x")).to_be_visible()
        assert await barriers(page) == []
        await page.get_by_role("button", name="Release …").click()
        await page.get_by_role("button", name="Release by force").click()
        await expect(page.get_by_text("Nothing is locked.")).to_be_visible()
        await waiting
        with pytest.raises(LockLost):
            await holding


async def test_a_breaker_is_reset(page: Page) -> None:
    async with counting() as stage:
        await stage.client.breakers.open("github", reason="maintenance")
        await page.goto(f"{stage.url}/#/breakers")
        row = page.get_by_role("row").filter(has_text="github")
        await expect(row).to_contain_text("maintenance")
        assert await barriers(page) == []
        await row.get_by_role("button", name="Reset …").click()
        await page.get_by_role("dialog").get_by_role("button", name="Reset").click()

        await expect(row).to_contain_text("closed")


async def test_an_agent_is_drained_from_its_row(page: Page) -> None:
    async with counting() as stage:
        await page.goto(stage.url)
        await page.get_by_role("button", name="Drain").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain").click()

        await expect(page.get_by_text("No agent lives.")).to_be_visible()


async def test_the_scorecard_shows_every_target_with_its_verdict(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorecard, "WATCH_PAUSE_SECONDS", 0.01)
    async with counting() as stage:
        await page.goto(f"{stage.url}/#/scorecard")
        rows = page.get_by_role("region", name="Targets").locator("tbody tr")

        await expect(rows).to_have_count(len(scorecard.TARGETS))
        await expect(rows.filter(has_text="capability matching").locator(".badge")).to_contain_text("pass")
        assert await barriers(page) == []


async def test_events_are_shown_as_they_happen(page: Page) -> None:
    async with counting() as stage:
        await page.goto(f"{stage.url}/#/events")
        told = page.get_by_role("region", name="Events").get_by_text("task.completed")
        async with asyncio.timeout(30):  # agents take a moment to notice that somebody listens
            while not await told.count():
                await stage.client.request("text.count", {"text": "a b"})

        assert await barriers(page) == []


async def test_empty_pages_say_what_fills_them(page: Page) -> None:
    async with staged([]) as stage:
        for name in EMPTY_PAGES:
            await page.goto(f"{stage.url}/#/{name}")

            await expect(page.locator(".empty .command").first).to_contain_text("coditect ")
