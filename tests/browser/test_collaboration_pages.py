"""The dashboard's pages of threads and handoffs, in Chromium."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Page, expect

from coditect import Agent, Context, HandoffOffer
from coditect.agent import mailbox
from dispatcher.coordination import handoffs as control_plane
from tests.browser.checks import barriers
from tests.browser.stage import staged


async def test_a_person_answers_a_question_in_a_thread_and_closes_it(page: Page) -> None:
    async with staged([]) as stage:
        thread = await stage.client.threads.open("ada", by="writer", title="Which colour?")
        await thread.say("red or blue?", type="question", to="ada")
        await page.goto(f"{stage.url}/#/threads")
        rows = page.get_by_role("region", name="Threads").get_by_role("row")
        await expect(rows).to_have_count(2)
        assert await barriers(page) == []
        await page.get_by_label("Participant").fill("nobody")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("No thread fits these filters.")).to_be_visible()
        await page.get_by_label("Participant").fill("ada")
        await page.keyboard.press("Tab")
        await page.get_by_role("link", name="Which colour?").click()
        messages = page.get_by_role("region", name="Messages")
        await expect(messages).to_contain_text("red or blue?")
        assert await barriers(page) == []

        await page.get_by_role("button", name="Answer …").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Your name").fill("eve")
        await dialog.get_by_label("Message").fill("blue")
        await dialog.get_by_role("button", name="Say").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("no such message")
        await dialog.get_by_label("Your name").fill("ada")
        await dialog.get_by_role("button", name="Say").click()
        await expect(messages).to_contain_text("blue")
        await expect(messages.get_by_role("row").nth(2)).to_contain_text("answer")
        await page.get_by_role("button", name="Close …").click()
        await page.get_by_role("dialog").get_by_label("Reason").fill("decided")
        await page.get_by_role("dialog").get_by_role("button", name="Close").click()

        await expect(page.get_by_text("decided")).to_be_visible()
        await expect(page.get_by_role("button", name="Say …")).to_have_count(0)
        assert (await thread.show()).reason == "decided"


async def test_a_handoff_shows_who_was_asked_and_is_withdrawn(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "DECIDE_SECONDS", 600.0)
    monkeypatch.setattr(control_plane, "ANSWER_MS", 600_000)
    desk, slow, asked, withdrawn = Agent("desk"), Agent("slow"), asyncio.Event(), asyncio.Event()

    @desk.capability("note.write", timeout="5m")
    async def write(text: str, ctx: Context) -> str:
        return str((await ctx.hand_off("note.print", reason="too long", context={"pages": 7})).why)

    @slow.capability("note.print")
    async def print_note(text: str) -> str:
        return text

    @slow.on_handoff
    async def decide(_: HandoffOffer) -> bool:
        asked.set()
        await withdrawn.wait()
        return True

    async with staged([desk, slow]) as stage:
        handle = await stage.client.submit("note.write", "a letter", durable=True)
        await asked.wait()
        await page.goto(f"{stage.url}/#/handoffs")
        row = page.get_by_role("region", name="Handoffs").get_by_role("row").filter(has_text="too long")
        await expect(row).to_contain_text("requested")
        assert await barriers(page) == []
        await row.get_by_role("link", name="note.print").click()
        await expect(page.get_by_role("region", name="Context")).to_contain_text('"pages": 7')
        await expect(page.get_by_role("region", name="Who was asked")).to_contain_text("slow-")
        assert await barriers(page) == []
        await page.get_by_role("button", name="Withdraw …").click()
        await page.get_by_role("dialog").get_by_label("Reason").fill("keep it")
        await page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()

        await expect(page.get_by_role("main")).to_contain_text("withdrawn")
        withdrawn.set()
        assert await handle.result(str, timeout="1m") == "keep it"
