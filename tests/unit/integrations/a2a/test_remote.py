"""A remote A2A agent, made by the SDK on a real socket, as capabilities: its states, its mistakes, and its malice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from coditect.errors import InputError, SetupError
from coditect.integrations.a2a.remote import (
    RemoteAgent,
    RemoteAsks,
    RemoteCall,
    RemoteFailed,
    RemoteRejected,
    a2a_agent,
    checked_client,
)
from coditect.integrations.http.addresses import AgentLost, AgentRefused, AllowedHosts, AnswerBroken
from coditect.local.servers import free_ports
from coditect.settings.settings import A2aSettings
from tests.support import eventually
from tests.unit.integrations.a2a.remote_server import TOKEN, application, card_of, hostile, serving

HERE = A2aSettings(private=True)


async def nothing(share: float, note: str) -> None:
    """Leave a task's progress out."""


@asynccontextmanager
async def remote_of(address: str, *, settings: A2aSettings = HERE) -> AsyncIterator[RemoteAgent]:
    remote = RemoteAgent(address, settings=settings)
    async with remote.open(await remote.card()):
        yield remote


async def never(request: dict[str, Any]) -> Response:
    raise AssertionError("nothing is sent")


@asynccontextmanager
async def hostile_remote(
    answer: Callable[[dict[str, Any]], Awaitable[Response]], *, streaming: bool = False
) -> AsyncIterator[RemoteAgent]:
    async with (
        serving(lambda address: hostile(card_of(f"{address}/rpc", streaming=streaming), answer)) as address,
        remote_of(address) as remote,
    ):
        yield remote


@asynccontextmanager
async def good(folder: Path, *, streaming: bool = True) -> AsyncIterator[RemoteAgent]:
    async with (
        serving(lambda address: application(folder, address, streaming=streaming)) as address,
        remote_of(address) as remote,
    ):
        yield remote


async def answer_of(remote: RemoteAgent, skill: str, value: Any = "hello", message_id: str = "m") -> Any:
    async with asyncio.timeout(20):
        return await remote.call(skill, value, message_id, nothing)


async def test_each_skill_is_a_capability_with_its_description(tmp_path: Path) -> None:
    async with serving(lambda address: application(tmp_path, address, streaming=True)) as address:
        agent = await a2a_agent("partner", address, settings=HERE)

    specs = {capability.name: capability for capability in agent.capabilities}
    assert {"partner.count", "partner.die-once"} < specs.keys()
    assert specs["partner.count"].spec.description == "It counts."
    assert specs["partner.count"].breaker is not None
    assert specs["partner.count"].breaker.name == "a2a:partner"


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_end_of_a_task_is_a_value_or_an_error_that_says_whether_to_try_again(
    tmp_path: Path, streaming: bool
) -> None:
    async with good(tmp_path, streaming=streaming) as remote:
        assert await answer_of(remote, "count") == 5
        assert await answer_of(remote, "echo", {"a": [1, 2.5, None], "b": "x"}) == {"a": [1, 2.5, None], "b": "x"}
        assert await answer_of(remote, "answer") == "HELLO"
        with pytest.raises(RemoteFailed, match="it fails: hello") as failed:
            await answer_of(remote, "fail")
        with pytest.raises(RemoteRejected, match="it rejects: hello") as rejected:
            await answer_of(remote, "reject")
        with pytest.raises(RemoteAsks, match="it asks: hello") as asks:
            await answer_of(remote, "ask")
        with pytest.raises(RemoteFailed):
            await answer_of(remote, "crash")

    assert (failed.value.retryable, rejected.value.retryable, asks.value.retryable) == (True, False, False)
    assert (tmp_path / "canceled").exists(), "a task that asks is not left there"


async def test_the_progress_of_the_remote_task_is_the_tasks(tmp_path: Path) -> None:
    seen = list[tuple[float, str]]()

    async def heard(share: float, note: str) -> None:
        seen.append((share, note))

    async with good(tmp_path) as remote:
        await remote.call("tell", "hello", "m", heard)

    assert (0.5, "it tells: hello") in seen


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_canceled_call_cancels_the_remote_task(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, run = list[RemoteCall](), RemoteCall.run

    async def noted(call: RemoteCall, request: Any) -> Any:
        calls.append(call)
        return await run(call, request)

    monkeypatch.setattr(RemoteCall, "run", noted)
    async with good(tmp_path, streaming=streaming) as remote:
        calling = asyncio.create_task(remote.call("stall", "hello", "m", nothing))
        await eventually((tmp_path / "ran").exists)
        await eventually(lambda: calls[0]._task_id)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

        assert (tmp_path / "canceled").exists()


async def test_a_token_goes_with_each_request_and_is_named_by_no_error_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(lambda address: application(tmp_path, address, streaming=True, guarded=True)) as address:
        async with remote_of(address, settings=A2aSettings(TOKEN, private=True)) as remote:
            assert await answer_of(remote, "count") == 5
        async with remote_of(address, settings=A2aSettings("wrong-token", private=True)) as remote:
            with pytest.raises(RemoteRejected, match="CODITECT_A2A_TOKEN") as refused:
                await answer_of(remote, "count")
        agent = await a2a_agent("partner", address, settings=A2aSettings(TOKEN, private=True))

    assert TOKEN not in f"{A2aSettings(TOKEN)!r}{agent.description}{caplog.text}"
    assert "wrong-token" not in f"{refused.value}{caplog.text}"


def application_at(url: str) -> Any:
    return hostile(card_of(url, streaming=False), never)


async def test_a_token_goes_to_no_other_host_that_a_card_names() -> None:
    async with serving(lambda _: application_at("http://localhost:9/rpc")) as address:
        with pytest.raises(SetupError, match="another host"):
            await RemoteAgent(address, settings=A2aSettings(TOKEN, private=True)).card()
        await RemoteAgent(address, settings=HERE).card()


async def test_private_addresses_are_refused_unless_allowed_also_those_that_a_card_names(tmp_path: Path) -> None:
    async with serving(lambda address: application(tmp_path, address, streaming=False)) as address:
        with pytest.raises(InputError, match="CODITECT_PRIVATE_ADDRESSES=a2a"):
            await RemoteAgent(address).card()
    metadata = application_at("http://169.254.169.254/rpc")
    async with serving(lambda _: metadata) as address, remote_of(address) as remote:
        with pytest.raises(InputError, match="169"):
            await answer_of(remote, "count")


def task(state: str = "TASK_STATE_COMPLETED", **more: Any) -> dict[str, Any]:
    return {"task": {"id": "t", "contextId": "c", "status": {"state": state}} | more}


DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]

MALFORMED: dict[str, Any] = {
    "no object": [1],
    "no result": {"jsonrpc": "2.0", "id": 1},
    "an empty result": {"result": {}},
    "a text": {"result": "done"},
    "wrong types": {"result": {"task": {"id": 5, "status": "done"}}},
    "nested deep": {"result": task(artifacts=[{"artifactId": "a", "parts": [{"data": DEEP}]}])},
    "an error that is none": {"error": "no"},
    "an unknown error": {"error": {"code": 1, "message": "no"}},
    "no task": {"result": {"task": {}}},
}


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_that_is_none_of_a2a_is_a_failed_attempt_that_says_so(streaming: bool) -> None:
    body: Any

    async def answer(request: dict[str, Any]) -> Response:
        return JSONResponse(body if isinstance(body, list) else {"jsonrpc": "2.0", "id": request["id"]} | body)

    async with hostile_remote(answer, streaming=streaming) as remote:
        for case in MALFORMED.items():
            kind, body = case
            with pytest.raises((AnswerBroken, RemoteFailed)) as broken:
                await answer_of(remote, "count")

            assert broken.value.retryable, kind


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 1_000_000
        await asyncio.sleep(0)  # the server's writes wait for nothing once the client is gone


HOSTILE: dict[str, tuple[Callable[[], Response], type[Exception], str]] = {
    "endless": (lambda: StreamingResponse(endless(), media_type="application/json"), AnswerBroken, "too large"),
    "compressed": (
        lambda: Response(b"x", headers={"content-encoding": "gzip"}, media_type="application/json"),
        AnswerBroken,
        "compressed",
    ),
    "elsewhere": (lambda: RedirectResponse("http://169.254.169.254/"), AnswerBroken, "307"),
    "no": (lambda: Response(status_code=404), RemoteRejected, "404"),
    "overloaded": (lambda: Response(status_code=429), AnswerBroken, "429"),
    "broken": (lambda: Response(status_code=500), AnswerBroken, "500"),
    "a page": (lambda: Response(b"<html>", media_type="text/html"), AnswerBroken, "not valid A2A"),
    "half": (lambda: Response(b'{"jsonrpc": "2', media_type="application/json"), AnswerBroken, "not valid A2A"),
}


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_hostile_answer_is_bounded_and_followed_nowhere(streaming: bool) -> None:
    make_answer: Callable[[], Response]

    async def answer(request: dict[str, Any]) -> Response:
        return make_answer()

    async with hostile_remote(answer, streaming=streaming) as remote:
        for case in HOSTILE.values():
            make_answer, error, match = case
            with pytest.raises(error, match=match):
                await answer_of(remote, "count")


@pytest.mark.parametrize(
    ("kind", "part", "whole"),
    [
        ("application/json", b"x", False),
        ("text/event-stream", b"x", False),
        ("text/event-stream", b"\n\n", True),
        ("text/event-stream", b"\r\n\r\n", True),
    ],
)
async def test_an_answer_and_each_event_of_a_stream_is_bounded_and_no_cookie_kept(
    kind: str, part: bytes, whole: bool
) -> None:
    body = (b"x" * 700_000 + part) * 2

    async def answer(request: dict[str, Any]) -> Response:
        return Response(body, headers={"set-cookie": "a=b"}, media_type=kind)

    async with (
        serving(lambda address: hostile(card_of(address, streaming=False), answer)) as address,
        checked_client(AllowedHosts(("*",), True)) as http,
    ):
        if whole:
            assert (await http.post(f"{address}/rpc", json={})).content == body
            assert not http.cookies
        else:
            with pytest.raises(AnswerBroken, match="too large"):
                await http.post(f"{address}/rpc", json={})


async def test_a_hostile_text_is_cut_and_a_half_of_a_pair_does_no_harm() -> None:
    async def answer(request: dict[str, Any]) -> Response:
        said = {"role": "ROLE_AGENT", "messageId": "x", "parts": [{"text": "y" * 1_000_000}]}
        told = {"jsonrpc": "2.0", "id": request["id"], "result": task("TASK_STATE_FAILED")}
        told["result"]["task"]["status"]["message"] = said
        return JSONResponse(told)

    async with hostile_remote(answer) as remote:
        with pytest.raises(RemoteFailed) as failed:
            await answer_of(remote, "count", "\ud83d")

    assert len(str(failed.value)) < 3_000


@pytest.mark.parametrize(
    ("skills", "match"),
    [
        ((), "1 to 200"),
        (tuple(f"s{number}" for number in range(201)), "1 to 200"),
        (("a b", "a-b"), "one name"),
        (("s" * 200,), "capability"),
    ],
    ids=["no skills", "many skills", "one name twice", "a long name"],
)
async def test_a_card_with_skills_that_cannot_be_capabilities_says_why(skills: tuple[str, ...], match: str) -> None:
    card = card_of("http://x/rpc", streaming=False, skills=skills)
    async with serving(lambda _: hostile(card, never)) as address:
        with pytest.raises(SetupError, match=match):
            await a2a_agent("partner", address, settings=HERE)


async def test_a_card_without_json_rpc_over_http_says_so() -> None:
    mute = card_of("http://x/rpc", streaming=False)
    mute.supported_interfaces[0].protocol_binding = "GRPC"
    for card, match in ((mute, "no JSON-RPC"), (card_of("file:///etc/passwd", streaming=False), "names no URL")):
        application = hostile(card, never)
        async with serving(lambda _, application=application: application) as address:  # type: ignore[misc]
            with pytest.raises(SetupError, match=match):
                await a2a_agent("partner", address, settings=HERE)


async def test_a_url_without_an_agent_says_so() -> None:
    for url in ("ftp://x", "http://user:secret@x", "x"):
        with pytest.raises(InputError, match="no URL"):
            RemoteAgent(url)
    with pytest.raises(AgentRefused, match="no connection"):
        await RemoteAgent("http://127.0.0.1:9", settings=HERE).card()

    async with serving(application_at) as address:
        with pytest.raises(RemoteRejected, match="404"):
            await RemoteAgent(f"{address}/nothing", settings=HERE).card()


async def test_an_agent_that_stays_away_is_lost() -> None:
    async def answer(request: dict[str, Any]) -> Response:
        if request["method"] == "SendMessage":
            return JSONResponse({"jsonrpc": "2.0", "id": request["id"], "result": task("TASK_STATE_WORKING")})
        told = {"code": -32001, "message": "no such task"}
        return JSONResponse({"jsonrpc": "2.0", "id": request["id"], "error": told})

    async with hostile_remote(answer) as remote:
        with pytest.raises(AgentLost, match="forgot the task"):
            await answer_of(remote, "count")


async def test_a_message_waits_for_an_agent_that_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    send = RemoteCall._send

    async def counted(call: RemoteCall, request: Any) -> Any:
        sent.append(request)
        return await send(call, request)

    monkeypatch.setattr(RemoteCall, "_send", counted)
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    remote = RemoteAgent(address, settings=HERE)
    async with remote.open(card_of(f"{address}/rpc", streaming=True)):
        asked = asyncio.create_task(answer_of(remote, "count"))
        await eventually(lambda: len(sent) > 2)  # the others were refused
        async with serving(lambda _: application(tmp_path, address, streaming=True), port=port):
            assert await asked == 5
        monkeypatch.setattr("coditect.integrations.a2a.remote.RETRY_CONNECT_SECONDS", 0.2)
        with pytest.raises(AgentRefused, match="no connection"):
            await answer_of(remote, "count")


def test_the_settings_are_read_and_checked() -> None:
    read = A2aSettings.read({"CODITECT_A2A_TOKEN": "t", "CODITECT_PRIVATE_ADDRESSES": "git, a2a"})

    assert read == A2aSettings("t", private=True)
    assert A2aSettings.read({}) == A2aSettings()
    with pytest.raises(SetupError, match="CODITECT_A2A_TOKEN") as wrong:
        A2aSettings.read({"CODITECT_A2A_TOKEN": "se\ncret"})
    assert "cret" not in str(wrong.value)
