"""The form's patterns and tuples, and the entry of an API key, in a headless Chromium."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from playwright.async_api import Page, expect
from pydantic import Field

from coditect import Agent
from coditect.api.access import AdminKey, KeyFile, Role
from coditect.api.bearer import BearerAccess
from tests.browser.checks import barriers
from tests.browser.stage import staged


@dataclass
class Server:
    """A server to look at."""

    name: Annotated[str, Field(pattern="^[a-z]+$")]
    address: tuple[str, int]


def looker() -> Agent:
    agent = Agent("looker")

    @agent.capability("server.look", description="Looks at a server.")
    async def look(server: Server) -> dict[str, Any]:
        return {"name": server.name, "address": server.address}

    return agent


def operation_id(document: dict[str, Any], path: str) -> str:
    return str(document["paths"][path]["get"]["operationId"])


async def test_the_form_keeps_to_a_pattern_and_asks_for_each_element_of_a_tuple(page: Page) -> None:
    async with staged([looker()]) as stage:
        await page.goto(f"{stage.url}/#/tasks?capability=server.look")
        await page.get_by_label("Name", exact=True).fill("Upper")
        await page.get_by_label("Address 1", exact=True).fill("localhost")
        await page.get_by_label("Address 2", exact=True).fill("80")
        assert await barriers(page) == []
        await page.get_by_role("button", name="Submit").click()
        await expect(page.get_by_role("alert")).to_contain_text("does not fit the pattern ^[a-z]+$")
        await page.get_by_label("Name", exact=True).fill("lower")
        await page.get_by_role("button", name="Submit").click()

        result = page.get_by_role("region", name="Result")
        await expect(result).to_contain_text('"lower"')
        await expect(result).to_contain_text("80")


async def test_an_api_with_keys_asks_for_one_until_it_is_right(page: Page, tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys")
    key = file.create("ada", Role.VIEWER, made_at="2026-01-01T00:00:00+00:00")
    async with staged([looker()], access=BearerAccess([file])) as stage:
        await page.goto(stage.url)
        dialog = page.get_by_role("dialog", name="This API wants a key")
        await expect(dialog).to_be_visible()
        assert await barriers(page) == []
        await dialog.get_by_label("API key").fill("coditect_wrong")
        await dialog.get_by_role("button", name="Enter").click()
        await expect(dialog.get_by_role("alert")).to_be_visible()
        await dialog.get_by_label("API key").fill(key)
        await dialog.get_by_role("button", name="Enter").click()

        await expect(dialog).to_be_hidden()
        await expect(page.get_by_role("row").filter(has_text="looker-00000001")).to_contain_text("server.look")
        await page.reload()  # the tab keeps it
        await expect(page.get_by_role("row").filter(has_text="looker-00000001")).to_be_visible()


async def test_a_link_with_the_key_opens_the_dashboard_and_does_not_keep_it_in_the_address(page: Page) -> None:
    key = "local-0123456789abcdef0123456789abcdef"
    async with staged([looker()], access=BearerAccess([AdminKey(key)])) as stage:
        agent = page.get_by_role("row").filter(has_text="looker-00000001")
        await page.goto(f"{stage.url}/#/fleet?key=wrong")
        await expect(page.get_by_role("dialog", name="This API wants a key")).to_be_visible()
        await page.goto(f"{stage.url}/#/fleet?key={key}")  # a change of the fragment alone, in an open tab

        await expect(agent).to_be_visible()
        assert page.url == f"{stage.url}/#/fleet"
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_api_is_documented_at_docs_and_an_operation_is_tried_from_there(page: Page) -> None:
    async with staged([looker()]) as stage:
        elsewhere: list[str] = []
        page.on("request", lambda sent: None if sent.url.startswith(stage.url) else elsewhere.append(sent.url))
        await page.goto(f"{stage.url}/docs")
        await page.get_by_label("Filter").fill("post /v1/tasks submit")
        submit = page.get_by_role("group").filter(has=page.get_by_text("/v1/tasks", exact=True))
        await submit.get_by_text("/v1/tasks", exact=True).click()
        await expect(submit.get_by_role("region", name="Parameters")).to_contain_text("Idempotency-Key")
        await submit.get_by_label("wait (optional)").fill("10s")
        await submit.get_by_role("button", name="Write JSON").click()
        await submit.get_by_label("JSON", exact=True).fill(
            '{"capability": "server.look", "input": {"name": "ab", "address": ["h", 1]}}'
        )
        await expect(submit.get_by_text("curl -s -X POST")).to_contain_text("/v1/tasks?wait=10s")
        await submit.get_by_role("button", name="Send").click()

        await expect(submit.get_by_role("region", name="Answer")).to_contain_text('"completed"')
        assert await barriers(page) == []

        last = page.get_by_role("group").filter(has=page.get_by_text("/v1/scorecard", exact=True))
        document = await (await page.request.get(f"{stage.url}/openapi.json")).json()
        await page.get_by_label("Filter").fill("/v1/")
        await page.evaluate("id => { location.hash = `#/docs/get-${id}` }", operation_id(document, "/v1/scorecard"))
        await expect(last.get_by_role("button", name="Send")).to_be_visible()
        await expect(last.get_by_text("/v1/scorecard", exact=True).first).to_be_in_viewport()
        await expect(page.get_by_label("Filter")).to_have_value("/v1/")
        assert elsewhere == []
