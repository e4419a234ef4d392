"""Markdown agents over a local chat endpoint: what their model may call, and what it may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from pydantic import BaseModel

from coditect import Agent, TaskFailed
from coditect.chat.budget import ChatBudget
from coditect.chat.endpoint import open_chat
from coditect.errors import SetupError
from coditect.integrations.markdown.conversation import Conversation, FleetTool
from coditect.integrations.markdown.declaration import markdown_agent
from coditect.integrations.markdown.file import MarkdownAgent, read_agent, read_folder
from coditect.model.capability import CapabilitySpec
from coditect.testing import TestFleet
from coditect.wire.json import MOST_LEVELS
from tests.chat_stub import ChatStub, calls, chat_stub, says

REVIEWER = """---
name: reviewer
description: Reviews text.
tools: text.count, text.find, Bash
model: inherit
color: blue
---
Review the text that you are given.
"""


class Found(BaseModel):
    text: str
    word: str


class Counter:
    """An agent with capabilities that a model may call, and one that it may not."""

    def __init__(self) -> None:
        self.deployed = 0
        self.agent = Agent("counter")
        self.agent.capability("text.count")(self.count)
        self.agent.capability("text.find")(self.find)
        self.agent.capability("site.deploy")(self.deploy)

    async def count(self, text: str) -> int:
        """Count letters."""
        return len(text)

    async def find(self, given: Found) -> bool:
        return given.word in given.text

    async def deploy(self, _: None) -> None:
        self.deployed += 1


@asynccontextmanager
async def working(
    counter: Counter, *answers: bytes, most_tokens: int = 100_000
) -> AsyncIterator[tuple[TestFleet, ChatStub]]:
    async with chat_stub(*answers) as stub:
        helpers = markdown_agent(
            "helpers",
            [read_agent(REVIEWER)],
            lambda: open_chat(stub.settings()),
            lambda: nullcontext(fleet.registry),
            most_tokens=most_tokens,
        )
        fleet = TestFleet(agents=[counter.agent, helpers])
        async with fleet:
            yield fleet, stub


async def test_a_model_does_the_task_with_the_tools_that_its_file_names() -> None:
    answers = (
        calls(("text_count", {"input": "hello"}), ("text_find", {"text": "hello", "word": "hell"})),
        says("5 letters"),
    )
    async with working(Counter(), *answers) as (fleet, stub):
        assert await fleet.request("helpers.reviewer", {"text": "hello"}) == "5 letters"

    first, second = stub.requests
    assert first["messages"][0]["content"] == "Review the text that you are given."
    assert {tool["function"]["name"] for tool in first["tools"]} == {"text_count", "text_find"}
    assert [one["content"] for one in second["messages"] if one["role"] == "tool"] == ["5", "true"]


async def test_a_model_calls_nothing_else_and_only_with_what_fits() -> None:
    counter = Counter()
    hostile = calls(
        ("site_deploy", {}), ("text_find", {"text": 5}), ("text_find", "{broken"), ("Bash", {"command": "id"})
    )
    async with working(counter, hostile, says("done")) as (fleet, stub):
        assert await fleet.request("helpers.reviewer", "x") == "done"

    told = [one["content"] for one in stub.requests[1]["messages"] if one["role"] == "tool"]
    assert [one.split(":")[0] for one in told] == ["Refused", "Failed", "Failed", "Refused"]
    assert counter.deployed == 0


async def test_a_result_that_no_json_can_carry_is_told_to_the_model() -> None:
    value: object = None
    for _ in range(2 * MOST_LEVELS):
        value = [value]

    async def request(capability: str, given: object) -> object:
        return value

    tool = FleetTool(CapabilitySpec("text.deep"))
    async with chat_stub(calls((tool.name, {})), says("done")) as stub, open_chat(stub.settings()) as model:
        talk = Conversation(model, ChatBudget(10_000), {tool.name: tool}, request)
        assert await talk.answer("do it", "x") == "done"

    (told,) = [one["content"] for one in stub.requests[1]["messages"] if one["role"] == "tool"]
    assert told.startswith("Failed: The value cannot be written as JSON")


async def test_a_conversation_ends_by_its_budget_and_by_its_rounds() -> None:
    async with working(Counter(), *[calls(("text_count", {"input": "x"}))] * 100, most_tokens=10_000_000) as (fleet, _):
        with pytest.raises(TaskFailed, match="did not come to an answer"):
            await fleet.request("helpers.reviewer", "x")
    async with working(Counter(), says("x" * 2_000), most_tokens=50) as (fleet, _):
        with pytest.raises(TaskFailed, match=r"[Bb]udget"):
            await fleet.request("helpers.reviewer", "x")


def test_a_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "reviewer.md").write_text(REVIEWER)
    assert read_folder(tmp_path) == [
        MarkdownAgent(
            name="reviewer",
            description="Reviews text.",
            tools=("text.count", "text.find", "Bash"),
            instructions="Review the text that you are given.",
        )
    ]
    for text, told in (
        ("# Only text", "begins with front matter"),
        ("---\nname: x\n---\n", "description"),
        ("---\nname: Not A Name\ndescription: x\n---\n", "name"),
        ("---\n: [\n---\n", "no YAML"),
        ("---\nname: x\ndescription: x\ntools: a.b_c, a_b.c\n---\n", "a_b_c"),
    ):
        with pytest.raises(SetupError, match=told):
            read_agent(text)
    (tmp_path / "other.md").write_text(REVIEWER)
    with pytest.raises(SetupError, match="one name"):
        read_folder(tmp_path)
    with pytest.raises(SetupError, match="1 to 200 files"):
        read_folder(tmp_path / "none")
