"""The tools of a real MCP server, a program of its own, as capabilities."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mcp_types import Tool

from coditect.errors import SetupError
from coditect.integrations.json_schema import SchemaCheck
from coditect.integrations.mcp.declaration import ToolFailed, ToolServer, ToolServerLost, agent_of, mcp_agent, value_of

SERVER = Path(__file__).with_name("tool_server.py")


def command(tmp_path: Path) -> str:
    return f"{sys.executable} {SERVER} {tmp_path}"


async def nothing(progress: float, total: float | None, message: str | None) -> None:
    """Leave a call's progress out."""


async def test_each_tool_is_a_capability_with_its_schema(tmp_path: Path) -> None:
    agent = await mcp_agent("letters", command(tmp_path))

    specs = {capability.name: capability.spec for capability in agent.capabilities}
    assert {"letters.count", "letters.shout"} < specs.keys()
    assert specs["letters.count"].description == "Count the letters of a text."
    assert specs["letters.count"].input_schema["required"] == ["text"]


async def test_a_schema_with_definitions_is_kept_as_it_is() -> None:
    agent = await mcp_agent("clock", f"{sys.executable} -m mcp_server_time --local-timezone=UTC")

    (converts,) = (capability.spec for capability in agent.capabilities if capability.name == "clock.convert_time")
    schema = dict[str, Any](converts.output_schema)
    assert schema["properties"]["source"] == {"$ref": "#/$defs/TimeResult"}
    assert "timezone" in schema["$defs"]["TimeResult"]["properties"]


async def test_a_value_is_what_is_structured_or_the_only_text_and_a_failed_tool_is_a_failure(tmp_path: Path) -> None:
    server = ToolServer(command(tmp_path))
    async with server.open():
        assert value_of(await server.call("count", {"text": "hello"}, nothing)) == {"result": 5}
        assert value_of(await server.call("shout", {"text": "hello"}, nothing)) == "HELLO"
        with pytest.raises(ToolFailed, match="no letters"):
            value_of(await server.call("count", {"text": ""}, nothing))


async def test_answers_are_checked_by_schemas_that_can_be_checked_at_once(tmp_path: Path) -> None:
    server = ToolServer(command(tmp_path))
    async with server.open():
        tools = [tool for tool in await server.tools() if tool.name == "only_a"]
        (only_a,) = (
            capability.handler
            for capability in agent_of("letters", server, tools, prefix="letters", slots=1).capabilities
        )
        assert await only_a({"text": "aa"}, None) == {"result": "aa"}

        since = time.process_time()
        with pytest.raises(ToolFailed, match="does not fit"):
            await only_a({"text": "a" * 26 + "!"}, None)

        assert time.process_time() - since < 0.5

        tools = [tool for tool in await server.tools() if tool.name == "not_a"]
        (not_a,) = agent_of("letters", server, tools, prefix="letters", slots=1).capabilities

        assert "(?!a)" in str(not_a.spec.output_schema)
        assert await not_a.handler({"text": "aa"}, None) == {"result": "aa"}


async def test_the_check_of_an_answer_does_not_block_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[threading.Thread]()
    monkeypatch.setattr(SchemaCheck, "check", lambda *_: threads.append(threading.current_thread()))
    server = ToolServer(command(tmp_path))
    async with server.open():
        (count,) = agent_of(
            "letters", server, [tool for tool in await server.tools() if tool.name == "count"], prefix="letters"
        ).capabilities
        await count.handler({"text": "hello"}, None)

    assert len(threads) == 1
    assert threading.current_thread() not in threads


async def test_a_server_that_is_killed_loses_one_call_and_is_opened_again(tmp_path: Path) -> None:
    server = ToolServer(command(tmp_path))
    async with server.open():
        with pytest.raises(ToolServerLost, match="ended during the call"):
            await server.call("die_once", {"text": "hello"}, nothing)

        assert value_of(await server.call("die_once", {"text": "hello"}, nothing)) == {"result": 5}

        await server.call("count", {"text": "hello"}, nothing)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        with pytest.raises(ToolServerLost):
            await server.call("count", {"text": "hello"}, nothing)

        assert value_of(await server.call("count", {"text": "hello"}, nothing)) == {"result": 5}


async def test_a_command_that_is_no_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.integrations.mcp.declaration.MCP_CONNECT_SECONDS", 2.0)
    with pytest.raises(ToolServerLost, match="cannot be reached"):
        await mcp_agent("none", f"{sys.executable} -c pass")
    with pytest.raises(ToolServerLost, match="no-such-program"):
        await mcp_agent("none", "no-such-program")


@pytest.mark.parametrize("wrong", ["", "'half", "run --api-key s3cret '", "https://", "http://u:s3cret/x@[::1:1/"])
def test_a_malformed_command_or_url_is_refused_without_its_secrets(wrong: str) -> None:
    with pytest.raises(SetupError, match="MCP server") as refused:
        ToolServer(wrong)

    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("https://me:s3cret@tools.example.com:8443/mcp?token=s3cret#x", "https://tools.example.com:8443/mcp"),
        ("http://[::1]:1/mcp", "http://[::1]:1/mcp"),
        ("npx -y server --api-key s3cret", "npx"),
    ],
)
def test_a_server_is_described_without_what_may_be_secret(target: str, name: str) -> None:
    agent = agent_of("letters", ToolServer(target), [Tool(name="count", input_schema={})], prefix="letters")

    assert agent.description == f"The tools of an MCP server: {name}"
