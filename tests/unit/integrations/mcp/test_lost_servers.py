"""Servers of MCP tools that restart, fail, fall silent or change their tools, and what becomes of their calls."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS

from chaos.faults.proxy import fault_proxy
from coditect.errors import InputError, SetupError
from coditect.integrations.mcp import declaration
from coditect.integrations.mcp.declaration import ToolServer, ToolServerLost, agent_of, value_of
from coditect.local.servers import free_ports
from tests.support import eventually

SILENT = Path(__file__).with_name("tool_server.py")


async def nothing(progress: float, total: float | None, message: str | None) -> None:
    """Leave a call's progress out."""


def letters(begun: asyncio.Event | None = None) -> MCPServer:
    """Return a server of four tools, of which `hold` sets `begun` and answers nothing."""
    server = MCPServer("letters")

    @server.tool()
    def count(text: str) -> int:
        return len(text)

    @server.tool()
    def fail(code: int) -> int:
        raise MCPError(code, "it failed")

    @server.tool()
    async def hold() -> None:
        if begun is not None:
            begun.set()
        await asyncio.Event().wait()

    @server.tool()
    async def grow(ctx: Context) -> str:
        @server.tool()
        def shout(text: str) -> str:
            return text.upper()

        await ctx.notify_tools_changed()
        await ctx.session.send_tool_list_changed()
        return "grown"

    return server


def in_process(served: MCPServer) -> ToolServer:
    server = ToolServer("in-process")
    server._at = served  # type: ignore[assignment]
    return server


@asynccontextmanager
async def serving(port: int, *, broken: bool = False, begun: asyncio.Event | None = None) -> AsyncIterator[None]:
    """Serve the tools over HTTP, with sessions that end with the block; if `broken`, answer everything with 500.

    With `begun`, which the tool `hold` sets, an answer begins only when the tool has ended.
    """

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"broken"})

    app: Any = fail if broken else letters(begun).streamable_http_app(json_response=begun is not None)
    lifespan: Any = "off" if broken else "on"
    config = uvicorn.Config(app, port=port, log_level="error", lifespan=lifespan, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server._serve())
    await eventually(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        await running


@pytest.fixture
def url() -> tuple[int, str]:
    (port,) = free_ports(1)
    return port, f"http://127.0.0.1:{port}/mcp"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("broken", [False, True])
async def test_a_remote_server_that_restarts_is_connected_to_again(
    url: tuple[int, str], mode: str, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "Client", partial(Client, mode=mode))
    port, address = url
    server = ToolServer(address)
    async with server.open():
        async with serving(port):
            assert value_of(await server.call("count", {"text": "hello"}, nothing)) == {"result": 5}
        if broken:
            async with serving(port, broken=True):
                with pytest.raises(ToolServerLost):
                    await server.call("count", {"text": "hello"}, nothing)
        async with serving(port):
            answers = [await _counted(server) for _ in range(2)]

    assert answers[1] == {"result": 5}, "at most one call is lost"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_connection_that_breaks_during_a_call_is_made_again(
    url: tuple[int, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "Client", partial(Client, mode=mode))
    (port, address), begun = url, asyncio.Event()
    async with serving(port, begun=begun), fault_proxy(address) as proxy:
        server = ToolServer(proxy.url)
        async with server.open():
            call = asyncio.ensure_future(server.call("hold", {}, nothing))
            await begun.wait()
            for pipe in proxy.pipes():
                pipe.cut()
            with pytest.raises(ToolServerLost):
                await call
            answers = [await _counted(server) for _ in range(2)]

    assert answers[1] == {"result": 5}, "at most one call more is lost"


async def _counted(server: ToolServer) -> Any:
    try:
        return value_of(await server.call("count", {"text": "hello"}, nothing))
    except ToolServerLost as error:
        assert error.retryable
        return None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (-32603, ToolServerLost),
        (-32000, ToolServerLost),
        (-32001, ToolServerLost),
        (-32099, ToolServerLost),
        (INVALID_PARAMS, InputError),
        (-32601, InputError),
        (1, InputError),
    ],
)
async def test_an_error_of_the_server_is_retryable_and_a_refusal_is_final(code: int, error: type[Exception]) -> None:
    server = in_process(letters())
    async with server.open():
        with pytest.raises(error, match="it failed"):
            await server.call("fail", {"code": code}, nothing)
        opened = await server._client()
        assert value_of(await server.call("count", {"text": "hello"}, nothing)) == {"result": 5}
        assert await server._client() is opened, "a server that answers is kept"


async def test_a_server_that_answers_nothing_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declaration, "MCP_PROBE_SECONDS", 1.0)
    server = ToolServer(f"{sys.executable} {SILENT} {tmp_path}")
    async with server.open():
        await server.call("count", {"text": "hello"}, nothing)
        silent = int((tmp_path / "pid").read_text())
        os.kill(silent, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await server.call("count", {"text": "hello"}, nothing, limit_seconds=1.0)

        assert value_of(await server.call("count", {"text": "hello"}, nothing)) == {"result": 5}
        assert int((tmp_path / "pid").read_text()) != silent


async def test_a_server_that_never_answers_the_greeting_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(declaration, "MCP_CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(declaration, "MCP_PROBE_SECONDS", 1.0)
    started = tmp_path / "started"
    code = f"open({str(started)!r}, 'a').write('x'); import sys; sys.stdin.read()"
    server = ToolServer(f'{sys.executable} -c "{code}"')
    async with server.open():
        await eventually(lambda: started.exists() and len(started.read_text()) > 1)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_change_of_the_tools_is_noticed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declaration, "Client", partial(Client, mode=mode))
    server, changed = in_process(letters()), asyncio.Event()
    server.on_change = changed.set
    async with server.open():
        assert "shout" not in {tool.name for tool in await server.tools()}
        await server.call("grow", {}, nothing)
        async with asyncio.timeout(10):
            await changed.wait()
        assert "shout" in {tool.name for tool in server.known}


async def test_tools_that_cannot_be_used_are_logged_once_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = in_process(letters())

    def reasons() -> list[str]:
        return [vars(record)["reason"] for record in caplog.records if "cannot be used" in record.message]

    async with server.open():
        known, client = await server.tools(), await server._client()
        for most, reported in ((3, 1), (3, 1), (200, 1), (3, 2)):
            monkeypatch.setattr(declaration, "MOST_TOOLS", most)
            await server._probe(client)
            assert reasons() == ["it lists more than 3 tools"] * reported
        assert server.known == known


ODD = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    method, tool = asked["method"], {"name": "count", "inputSchema": {"type": "object"}}
    if method == "initialize":
        about = {"name": "odd", "version": "1"}
        answer = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        answer = {"tools": [tool] if sys.argv[1] == "good" else [tool, {"name": "bare"}]}
    else:
        answer = {"content": "no list"}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}), flush=True)
"""


async def test_what_is_not_of_the_protocol_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    good, bad = (ToolServer(f"{sys.executable} {tmp_path / 'odd.py'} {kind}") for kind in ("good", "bad"))
    async with good.open(), bad.open():
        with pytest.raises(SetupError, match=r"tools\.1\.inputSchema: Field required"):
            await bad.tools()
        assert len(await good.tools()) == 1
        with pytest.raises(ToolServerLost, match="content: Input should be a valid list"):
            await good.call("count", {}, nothing)


async def test_a_tool_that_cannot_be_a_capability_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    mcp = letters()
    for name in ("x" * 120, "Count", "p0"):
        mcp.add_tool(lambda: 1, name=name)
    server = in_process(mcp)
    async with server.open():
        agent = agent_of("letters", server, await server.tools(), prefix="letters")

    assert {capability.name for capability in agent.capabilities} == {
        f"letters.{name}" for name in ("count", "fail", "grow", "hold")
    }
    left_out = {vars(record)["tool"] for record in caplog.records if "left out" in record.message}
    assert left_out == {"x" * 120, "Count", "p0"}


class Unclosable:
    """A client of MCP whose connection cannot be closed without an error."""

    session = SimpleNamespace()

    async def __aenter__(self) -> Unclosable:
        return self

    async def __aexit__(self, *_: object) -> None:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [OSError("broken pipe")])

    @asynccontextmanager
    async def listen(self, **_: object) -> AsyncIterator[AsyncIterator[None]]:
        async def never() -> AsyncIterator[None]:
            await asyncio.Event().wait()
            yield

        yield never()


async def test_a_connection_that_fails_while_it_is_closed_is_not_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToolServer, "_new_client", lambda _: Unclosable())

    server = ToolServer("any-server")
    async with asyncio.timeout(20), server.open():
        await server._client()
