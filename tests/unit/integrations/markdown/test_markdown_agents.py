"""Markdown agents over a local chat endpoint: what their model may call, and what it may not."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from pydantic import BaseModel

from coditect import Agent, TaskFailed, TaskRejected
from coditect.chat.endpoint import open_chat
from coditect.chat.port import ChatBudget
from coditect.errors import SetupError
from coditect.integrations.markdown import (
    Conversation,
    MarkdownAgent,
    markdown_agent,
    read_agent,
    read_folder,
)
from coditect.model.capability import CapabilitySpec
from coditect.testing import TestFleet
from coditect.wire.json import MAX_JSON_LEVELS
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
    assert [message["content"] for message in second["messages"] if message["role"] == "tool"] == ["5", "true"]


async def test_a_model_gets_the_lessons_of_its_own_capability_and_of_its_tools() -> None:
    async with working(Counter(), says("done"), says("done")) as (fleet, stub):
        with pytest.raises(TaskRejected):
            await fleet.request("text.count", {"not": "a text"})
        await fleet.client.emit("attempt.failed", capability="helpers.reviewer", error="token=abc", reason="timeout")
        await fleet.client.emit("attempt.failed", capability="site.deploy", error="no concern of the model")
        await fleet.advance("10s")
        await fleet.request("helpers.reviewer", "x")

    instructions, lessons, given = stub.requests[0]["messages"]
    assert (instructions["role"], instructions["content"]) == ("system", "Review the text that you are given.")
    assert (lessons["role"], given["content"]) == ("user", "x")
    head, _, found = lessons["content"].partition("\n")
    assert head.endswith("never instructions:")
    reasons = {name: lesson.partition(" [")[0] for name, (lesson,) in json.loads(found).items()}
    assert reasons.keys() == {"helpers.reviewer", "text.count"}
    assert reasons["helpers.reviewer"] == "timeout: token=***"


async def test_a_model_works_without_a_control_plane_to_learn_from() -> None:
    async with working(Counter(), says("done"), says("done")) as (fleet, stub):
        fleet.kill("dispatcher")
        for _ in range(2):
            assert await fleet.request("helpers.reviewer", "x") == "done"

    assert stub.requests[1]["messages"][0]["content"] == "Review the text that you are given."


async def test_a_model_calls_nothing_else_and_only_with_what_fits() -> None:
    counter = Counter()
    hostile = calls(
        ("site_deploy", {}), ("text_find", {"text": 5}), ("text_find", "{broken"), ("Bash", {"command": "id"})
    )
    async with working(counter, hostile, says("done")) as (fleet, stub):
        assert await fleet.request("helpers.reviewer", "x") == "done"

    answers = [message["content"] for message in stub.requests[1]["messages"] if message["role"] == "tool"]
    assert [answer.split(":")[0] for answer in answers] == ["Refused", "Failed", "Failed", "Refused"]
    assert counter.deployed == 0


async def test_a_result_that_no_json_can_carry_is_told_to_the_model() -> None:
    value: object = None
    for _ in range(2 * MAX_JSON_LEVELS):
        value = [value]

    async def request(capability: str, given: object) -> object:
        return value

    spec = CapabilitySpec("text.deep")
    async with chat_stub(calls(("text_deep", {})), says("done")) as stub, open_chat(stub.settings()) as model:
        talk = Conversation(model, ChatBudget(10_000), {"text_deep": spec}, request)
        assert await talk.answer("do it", "x") == "done"

    (answer,) = [message["content"] for message in stub.requests[1]["messages"] if message["role"] == "tool"]
    assert answer.startswith("Failed: The value cannot be written as JSON")


async def test_a_conversation_ends_by_its_budget_and_by_its_rounds() -> None:
    async with working(Counter(), *[calls(("text_count", {"input": "x"}))] * 100, most_tokens=10_000_000) as (fleet, _):
        with pytest.raises(TaskFailed, match="did not come to an answer"):
            await fleet.request("helpers.reviewer", "x")
    async with working(Counter(), says("x" * 2_000), most_tokens=50) as (fleet, _):
        with pytest.raises(TaskFailed, match=r"[Bb]udget"):
            await fleet.request("helpers.reviewer", "x")


def test_a_file_says_what_is_wrong_with_it_and_where(tmp_path: Path) -> None:
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
    with pytest.raises(SetupError, match="no such folder"):
        read_folder(tmp_path / "none")

    with pytest.raises(SetupError, match="line=6"):
        read_agent("\ufeff\n\n" + PLAIN.replace("Reads.", "[Reads."))


PLAIN = "---\nname: a\ndescription: Reads.\n---\nRead it."


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + PLAIN,
        "\ufeff\ufeff" + PLAIN,
        PLAIN + "\n",
        "\n\n" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("---", "---  \t"),
        PLAIN.replace("---", " ---"),
    ],
)
def test_odd_blanks_and_byte_order_marks_are_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.md").write_bytes(content.encode())
    assert read_folder(tmp_path) == [MarkdownAgent(name="a", description="Reads.", instructions="Read it.")]


def test_a_description_may_have_a_colon_and_instructions_may_be_missing() -> None:
    text = 'Use it for: reviews. <example>Context: "a" #1 🚀</example>'
    agent = read_agent(PLAIN.replace("Reads.", text).replace("---\nRead", "model: inherit\ncolor: red\n---\nRead"))
    assert (agent.description, agent.name, agent.model) == (text, "a", None)

    assert read_agent("---\nname: a\ndescription: Reads.\n---").instructions == ""


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1d"])
def test_a_line_ends_with_a_line_feed_or_a_carriage_return_alone(odd: str) -> None:
    agent = read_agent(PLAIN.replace("Reads.", f"Reads{odd}it for: you") + f"\rline{odd}two")

    assert (agent.description, agent.instructions) == (f"Reads{odd}it for: you", f"Read it.\nline{odd}two")


@pytest.mark.parametrize(
    ("tools", "names"),
    [
        ("Read Grep", ("Read", "Grep")),
        ("Read, Grep", ("Read", "Grep")),
        ("[Read, Grep]", ("Read", "Grep")),
        ("Bash(git log:*), Read", ("Bash(git log:*)", "Read")),
        ("", ()),
    ],
)
def test_tools_have_commas_or_blanks_between(tools: str, names: tuple[str, ...]) -> None:
    assert read_agent(PLAIN.replace("---\nRead", f"tools: {tools}\n---\nRead")).tools == names


def test_odd_files_are_left_out_with_the_reason_and_folders_below_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inner = tmp_path / "team" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text(PLAIN.replace("name: a", "name: hidden"))
    (tmp_path / "a.md").write_text(PLAIN)
    (inner / "b.md").write_text(PLAIN.replace("name: a", "name: b"))
    (tmp_path / "again.md").write_text(PLAIN)
    (tmp_path / "latin.md").write_bytes("---\nname: ä".encode("latin-1"))
    (tmp_path / "open.md").write_text("---\nname: c\ndescription: d\n")
    (tmp_path / "README.md").write_text("# The team")
    (tmp_path / "folder.md").mkdir()
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "endless.md").symlink_to("/dev/zero")

    assert [agent.name for agent in read_folder(tmp_path)] == ["a", "b"]
    reasons = {Path(vars(record)["path"]).name: vars(record)["reason"] for record in caplog.records}
    assert reasons.keys() == {
        "again.md", "latin.md", "open.md", "README.md", "folder.md", "pipe.md", "endless.md",
    }  # fmt: skip
    assert "front matter" in reasons["README.md"] and "no end" in reasons["open.md"]

    (tmp_path / "a.md").unlink()
    (tmp_path / "again.md").unlink()
    (inner / "b.md").unlink()
    with pytest.raises(SetupError, match="README"):
        read_folder(tmp_path)


def test_linked_folders_are_read_once_and_cycles_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real, agents = tmp_path / "real", tmp_path / "agents"
    (agents / "team").mkdir(parents=True)
    real.mkdir()
    (agents / "a.md").write_text(PLAIN)
    (real / "b.md").write_text(PLAIN.replace("name: a", "name: b"))
    for link in (agents / "linked", agents / "team" / "again", agents / ".hidden"):
        link.symlink_to(real)
    for link in (agents / "team" / "up", real / "self"):
        link.symlink_to(link.parent)
    (real / "back").symlink_to(agents)

    assert [agent.name for agent in read_folder(agents)] == ["a", "b"]
    assert not caplog.records


def test_folder_that_cannot_be_read_is_left_out_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    (tmp_path / "closed").mkdir()
    (tmp_path / "a.md").write_text(PLAIN)
    monkeypatch.setattr(os, "scandir", scandir)

    assert [agent.name for agent in read_folder(tmp_path)] == ["a"]
    (record,) = caplog.records
    assert (vars(record)["path"], "denied" in vars(record)["reason"]) == (str(tmp_path / "closed"), True)
