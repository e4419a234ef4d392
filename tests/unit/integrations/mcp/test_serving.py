"""A fleet as an MCP server: its tools, calls with progress and cancel, durable tasks, and what can be read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle, pairwise
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, TextResourceContents

from coditect import Agent, Context, Workflow
from coditect.errors import CoditectError, ControlPlaneRequired, NotFound
from coditect.integrations.mcp.serving import capability_tools, fleet_server, open_http
from coditect.model.capability import CapabilitySpec
from coditect.testing import TestFleet
from coditect.wire.json import loads
from tests.api import services_of
from tests.support import eventually
from tests.unit.integrations.workers import Workers


@asynccontextmanager
async def connected(agent: Agent, *patterns: str) -> AsyncIterator[Client]:
    async with (
        TestFleet(agents=[agent]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
        Client(fleet_server(services.opened, patterns or ("*",)), raise_exceptions=True) as client,
    ):
        yield client


async def read(client: Client, uri: str) -> Any:
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return loads(content.text.encode())


async def test_a_call_is_a_task_whose_value_or_error_a_model_can_read() -> None:
    async with connected(Workers().agent) as client:
        counted = await client.call_tool("text_count", {"input": "hello"})
        reviewed = await client.call_tool("code_review", {"repo": "x", "number": 1})

        assert counted.structured_content == {"result": 5}
        assert reviewed.structured_content == {"repo": "x", "number": 1}

        failed = await client.call_tool("code_review", {"repo": "x", "number": -1})
        wrong = await client.call_tool("code_review", {"repo": "x"})
        lost = await client.call_tool("text_count", {"text": "hello"})
        with pytest.raises(MCPError, match="text_count"):
            await client.call_tool("text_cuont", {})

    assert failed.is_error
    assert "there is no such pull request" in str(failed.content)
    assert wrong.is_error
    assert "number" in str(wrong.content)
    assert lost.is_error
    assert '{"input": ...}' in str(lost.content)


async def test_only_capabilities_of_the_patterns_are_offered_or_may_be_submitted() -> None:
    async with connected(Workers().agent, "text.*") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "text_count" in names
        assert not any(name.startswith(("code", "site")) for name in names)
        for name, arguments in (("site_build", {}), ("coditect_submit", {"capability": "site.build"})):
            with pytest.raises(MCPError, match="No living agent offers"):
                await client.call_tool(name, arguments)


async def test_tasks_and_workflows_beyond_the_patterns_are_neither_told_nor_canceled() -> None:
    workers = Workers()
    async with (
        TestFleet(agents=[workers.agent]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
        Client(fleet_server(services.opened, ("text.*",)), raise_exceptions=True) as client,
    ):
        flow = Workflow("several")
        flow.task("text.count", "a", after=[flow.task("site.wait", name="first")])
        handles = [(await fleet.client.submit("site.wait", durable=True)).task_id, (await fleet.client.start(flow)).id]
        answers = [
            await client.call_tool(tool, {"task": handle})
            for tool in ("coditect_task", "coditect_cancel")
            for handle in handles
        ]
        states = [row.state.value async for row in fleet.client.workflows.list()]

    assert [answer.is_error for answer in answers] == [True] * 4
    assert states == ["running"] * 2


def tool_names(*capabilities: str) -> dict[str, str]:
    tools = capability_tools(CapabilitySpec(name) for name in capabilities)
    assert all(re.fullmatch(r"[a-z0-9_-]{1,128}", name) for name in tools)
    return {tool.spec.name: name for name, tool in tools.items()}


def test_each_capability_has_a_tool_whose_name_never_passes_to_one_that_appears_beside_it() -> None:
    alike = ("a.b.c", "a.b_c", "a_b.c", "a_b_c")
    names, longest = tool_names("text.count", *alike), tool_names(f"a.{'b' * 98}", f"a_{'b' * 98}")
    lookalike = names["a.b.c"]

    assert names["text.count"] == "text_count"
    assert len({names[capability] for capability in alike}) == 4
    assert len(longest) == len(set(longest.values())) == 2
    assert tool_names(*alike[:2]).items() < names.items()
    for capability in alike:
        assert tool_names(capability) == {capability: "a_b_c"}
        assert "a_b_c" not in names.values()
    assert len(set(tool_names(*alike, lookalike).values())) == 5


async def test_a_capability_never_takes_the_name_of_a_built_in_tool() -> None:
    agent = Agent("other")

    @agent.capability("coditect.submit")
    async def submit(text: str) -> str:
        return text

    async with connected(agent) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        (own,) = set(names) - {"coditect_submit", "coditect_task", "coditect_cancel"}
        answered = await client.call_tool(own, {"input": "hello"})
        by_capability = await client.call_tool("coditect.submit", {"input": "hello"})

    assert len(names) == 4
    assert answered.structured_content == by_capability.structured_content == {"result": "hello"}


async def test_a_canceled_call_cancels_its_task() -> None:
    workers = Workers()
    async with connected(workers.agent) as client:
        calling = asyncio.create_task(client.call_tool("site_wait", {}))
        await workers.begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await eventually(lambda: workers.canceled)


async def test_a_durable_task_is_asked_for_later_and_the_same_key_gives_the_same_task() -> None:
    async with connected(Workers().agent) as client:
        order = {"capability": "text_count", "arguments": {"input": "hello"}, "key": "once"}
        first = (await client.call_tool("coditect_submit", order)).structured_content
        again = (await client.call_tool("coditect_submit", order)).structured_content
        ended = await client.call_tool("coditect_task", {"task": first["task"], "wait_seconds": 20})
        long = (await client.call_tool("site_build", {"input": "shop"})).structured_content
        built = await client.call_tool("coditect_task", {"task": long["task"], "wait_seconds": 20})

    assert first["task"] == again["task"]
    assert ended.structured_content == {"task": first["task"], "state": "completed", "result": 5}
    assert built.structured_content["result"] == "shop is built"


async def test_a_key_with_another_input_is_refused() -> None:
    async with connected(Workers().agent) as client:
        order = {"capability": "text_count", "arguments": {"input": "hello"}, "key": "once"}
        await client.call_tool("coditect_submit", order)
        for other in ({"arguments": {"input": "other"}}, {"capability": "site_build"}):
            with pytest.raises(MCPError, match="key") as caught:
                await client.call_tool("coditect_submit", order | other)
            assert caught.value.code == INVALID_PARAMS


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_any_process_answers_a_client_over_http_and_keys_are_those_of_the_caller(mode: str) -> None:
    async with (
        TestFleet(agents=[Workers().agent]) as fleet,
        services_of(fleet.server, fleet.registry, fleet.client) as services,
        open_http(services.opened, most_bytes=100_000) as first,
        open_http(services.opened, most_bytes=100_000) as second,
    ):
        processes = cycle([first.handle_request, second.handle_request])
        tasks = dict[str, str]()
        for caller in ("ada", "bob"):

            async def app(scope: Any, receive: Any, send: Any, caller: str = caller) -> None:
                state = {"caller": SimpleNamespace(name=caller)}
                await next(processes)(scope | {"state": state}, receive, send)

            async with (
                httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http,
                Client(streamable_http_client("http://127.0.0.1:1/mcp", http_client=http), mode=mode) as client,
            ):
                for _ in range(2):
                    counted = await client.call_tool("text_count", {"input": "hello"})
                    assert counted.structured_content == {"result": 5}
                    order = {"capability": "text_count", "arguments": {"input": caller}, "key": "once"}
                    tasks[caller] = (await client.call_tool("coditect_submit", order)).structured_content["task"]

    assert tasks["ada"] != tasks["bob"]


async def test_progress_always_rises() -> None:
    agent, seen = Agent("worker"), list[float]()
    arrived = asyncio.Event()

    @agent.capability("long.work")
    async def work(_: None, ctx: Context) -> str:
        for share, note in ((0.5, "a"), (0.2, "again"), (0.5, "b"), (0.2, ""), (0.7, "last")):
            await ctx.progress(share, note)
        await arrived.wait()
        return "done"

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        if message == "last":
            arrived.set()

    async with connected(agent) as client:
        await client.call_tool("long_work", {}, progress_callback=heard)

    assert len(seen) > 1 and all(before < after for before, after in pairwise(seen)), seen
    assert seen[-1] == 0.7


async def test_workflows_and_dead_letters_can_be_read() -> None:
    async with connected(Workers().agent) as client:
        accepted = (await client.call_tool("coditect_submit", {"capability": "text.count"})).structured_content
        ended = await client.call_tool("coditect_task", {"task": accepted["task"], "wait_seconds": 20})
        assert ended.structured_content["state"] == "rejected"
        await client.call_tool("code_review", {"repo": "x", "number": -1})
        listed = {str(resource.uri) for resource in (await client.list_resources()).resources}
        dead = await read(client, "coditect://dead")
        letter = dead["letters"][0]["id"]
        whole = await read(client, f"coditect://dead/{letter}")
        workflows = await read(client, "coditect://workflows")
        shown = await read(client, f"coditect://workflows/{workflows[0]['workflow']}")
        with pytest.raises(MCPError, match="coditect://workflows"):
            await client.read_resource("file:///etc/passwd")

    assert listed == {"coditect://workflows", "coditect://dead"}
    assert "there is no such pull request" in str(whole)
    assert shown["nodes"][0]["capability"] == "text.count"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ControlPlaneRequired("No dispatcher answers"), INTERNAL_ERROR), (NotFound("No such workflow"), INVALID_PARAMS)],
)
async def test_only_a_wrong_resource_is_a_wrong_parameter(
    error: CoditectError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("coditect.operations.workflows.show_workflow", fails)
    async with connected(Workers().agent) as client:
        with pytest.raises(MCPError, match=error.sentence) as refused:
            await client.read_resource("coditect://workflows/x")

    assert refused.value.code == code


async def test_each_capability_of_json_is_a_tool_with_its_description_and_schemas() -> None:
    async with connected(Workers().agent) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}

    assert {"text_count", "code_review", "site_wait", "site_build"} < tools.keys()
    assert "file_hash" not in tools
    assert tools["text_count"].description == "Count letters."
    assert tools["text_count"].input_schema["required"] == ["input"]
    assert set(tools["code_review"].input_schema["properties"]) == {"repo", "number"}
    assert tools["site_wait"].input_schema["required"] == [], tools["site_wait"].input_schema
