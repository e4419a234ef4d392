"""The chat endpoint against a local one that speaks the protocol: well, badly, slowly, hostile."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from coditect.chat.endpoint import open_chat
from coditect.chat.port import (
    BudgetSpent,
    ChatAnswer,
    ChatBroken,
    ChatBudget,
    ChatMessage,
    ChatRefused,
    ChatRequest,
    ChatRole,
    ChatTool,
    ChatUnavailable,
    Prices,
    ToolCall,
)
from coditect.errors import SetupError
from coditect.settings.settings import ChatSettings
from tests.chat_stub import STREAM, ChatStub, calls, chat_stub, delta, event, refuses, says, stream, usage

QUESTION = ChatRequest((ChatMessage(ChatRole.SYSTEM, "Be brief."), ChatMessage(ChatRole.USER, "Why?")))


async def ask(
    stub: ChatStub, request: ChatRequest = QUESTION, budget: ChatBudget | None = None, **settings: Any
) -> ChatAnswer:
    async with open_chat(stub.settings(**settings)) as chat:
        return await chat.ask(request, budget or ChatBudget(10_000))


async def test_text_comes_in_pieces_and_as_a_whole_and_is_charged() -> None:
    budget, pieces = ChatBudget(10_000), list[str]()
    async with (
        chat_stub(says("Because.", prompt=30, completion=4)) as stub,
        open_chat(stub.settings(input_price=1.0, output_price=100.0)) as chat,
    ):
        answer = await chat.ask(QUESTION, budget, on_text=pieces.append)

    assert (answer.text, answer.tool_calls, pieces) == ("Because.", (), ["Beca", "use."])
    assert (budget.used.input, budget.used.output) == (30, 4)
    assert budget.cost == pytest.approx((30 + 400) / 1e6)
    assert stub.requests[0]["messages"][1] == {"role": "user", "content": "Why?"}
    assert stub.requests[0]["model"] == "stub-1"
    assert "authorization: bearer sk-test" in stub.heads[0].lower()


async def test_calls_of_tools_are_put_together_by_their_index() -> None:
    tool = ChatTool("code_review", "Reviews code.", {"type": "object", "properties": {"pr": {"type": "integer"}}})
    said = ChatMessage(ChatRole.ASSISTANT, "", (ToolCall("call_9", "code_review", "{}"),))
    answered = ChatMessage(ChatRole.TOOL, "fine", answers="call_9")
    request = ChatRequest((*QUESTION.messages, said, answered), (tool,), schema={"type": "object"})
    async with chat_stub(calls(("code_review", {"pr": 42}), ("code_review", "{not json"))) as stub:
        answer = await ask(stub, request)

    first, second = answer.tool_calls
    assert first == ToolCall("call_0", "code_review", '{"pr": 42}')
    assert (second.id, second.arguments) == ("call_1", "{not json")
    sent = stub.requests[0]
    assert sent["tools"][0]["function"]["parameters"] == tool.schema
    assert sent["messages"][2]["tool_calls"][0]["id"] == sent["messages"][3]["tool_call_id"] == "call_9"
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refuses("401 Unauthorized"), ChatRefused, "CODITECT_CHAT_KEY"),
        (refuses("400 Bad Request"), ChatRefused, "refuses"),
        (refuses("302 Found", b"", b"location: http://127.0.0.1:1/"), ChatRefused, "302"),
        (refuses("503 Service Unavailable"), ChatUnavailable, "503"),
        (refuses("500 Oops", b"x" * 3_000_000), ChatUnavailable, "500"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", ChatBroken, "stream"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ChatUnavailable, "reached"),
        (b"", ChatUnavailable, "reached"),
        (stream(["{"]), ChatBroken, "protocol"),
        (stream([[]]), ChatBroken, "protocol"),
        (stream([{"choices": [{"delta": {"content": 7}}]}]), ChatBroken, "protocol"),
        (stream([{"usage": {"prompt_tokens": -5}}]), ChatBroken, "protocol"),
        (stream([delta(tool_calls=[{"index": 10**9}])]), ChatBroken, "protocol"),
        (stream(["[" * 100_000]), ChatBroken, "protocol"),
        (stream([{"error": {"message": "overloaded"}}]), ChatUnavailable, "overloaded"),
        (stream([delta(content="Bec")]), ChatBroken, "before its end"),
        (stream([delta(content="Bec")], done=False), ChatBroken, "before its end"),
        (stream([delta("length", content="Bec"), usage()]), ChatBroken, "limit of tokens"),
        (stream([delta("content_filter")]), ChatBroken, "filter"),
        (stream([delta("stop", refusal="I will not.")]), ChatBroken, "I will not"),
        (stream([delta("stop")]), ChatBroken, "empty"),
        (STREAM.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + b"\x1f\x8b", ChatBroken, "compressed"),
    ],
)
async def test_what_is_no_answer_is_an_error_that_says_whether_to_ask_again(
    answer: bytes, error: type[ChatBroken | ChatRefused | ChatUnavailable], words: str
) -> None:
    async with chat_stub(answer) as stub:
        with pytest.raises(error) as caught:
            await ask(stub)

    assert words in str(caught.value)
    assert caught.value.retryable is (error is not ChatRefused)
    assert len(str(caught.value)) < 1_000
    assert len(stub.requests) == 1, "it is not tried again, and no redirect is followed"


@pytest.mark.parametrize(("seconds", "pause"), [(b"7", 7), (b"9" * 5_000, None)])
async def test_the_pause_that_an_overloaded_endpoint_asks_for_is_told_if_it_is_a_time(
    seconds: bytes, pause: int | None
) -> None:
    async with chat_stub(refuses("429 Too Many Requests", b"{}", b"retry-after: " + seconds)) as stub:
        with pytest.raises(ChatUnavailable) as caught:
            await ask(stub)

    assert caught.value.facts.get("retry_after_seconds") == pause


async def test_an_endpoint_that_is_not_there_is_unavailable() -> None:
    async with chat_stub() as stub:
        pass

    with pytest.raises(ChatUnavailable):
        await ask(stub)


async def stop_amid(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM + event(delta(content="Bec")))
    await writer.drain()
    await asyncio.sleep(30)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM)
    while True:
        writer.write(b": still here\n\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM)
    while True:
        writer.write(event(delta(content="word " * 200)))
        await writer.drain()


async def write_one_line(writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM + b"data: ")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


@pytest.mark.parametrize(
    ("answer", "settings", "error", "words"),
    [
        (stop_amid, {"seconds": 0.4}, ChatUnavailable, "ReadTimeout"),
        (drip, {"seconds": 0.3}, ChatUnavailable, "in time"),
        (flood, {"max_bytes": 100_000}, ChatBroken, "too large"),
        (write_one_line, {}, ChatBroken, "limit"),
    ],
)
async def test_an_answer_without_end_is_cut(
    answer: Any, settings: dict[str, Any], error: type[ChatBroken | ChatUnavailable], words: str
) -> None:
    async with chat_stub(answer) as stub:
        with pytest.raises(error, match=words):
            await ask(stub, budget=ChatBudget(10**9), **settings)


async def test_an_answer_over_the_budget_is_cut_and_a_spent_one_sends_nothing() -> None:
    budget = ChatBudget(2_000)
    async with chat_stub(flood) as stub:
        with pytest.raises(BudgetSpent, match="most_tokens=2000"):
            await ask(stub, budget=budget)

    assert stub.requests[0]["max_completion_tokens"] < 2_000
    assert budget.used.total >= 2_000

    budget = ChatBudget(1_000)
    async with chat_stub(says("Because.", prompt=900, completion=90)) as stub:
        await ask(stub, budget=budget)
        with pytest.raises(BudgetSpent):
            await ask(stub, budget=budget)

    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    ("answer", "ends", "charged"),
    [
        (says("word " * 4_000, prompt=0, completion=0), nullcontext(), 20_000 // 16),
        (stream([delta(content="B" * 4_000)], done=False), pytest.raises(ChatBroken), 1_000),
        (refuses("401 Unauthorized"), pytest.raises(ChatRefused), 0),
    ],
    ids=["an endpoint that counts nothing", "an answer that broke off", "a refused request"],
)
async def test_what_the_endpoint_does_not_count_is_charged_by_the_bytes(
    answer: bytes, ends: AbstractContextManager[Any], charged: int
) -> None:
    budget = ChatBudget(100_000)
    async with chat_stub(answer) as stub:
        with ends:
            await ask(stub, budget=budget)

    assert budget.used.output == charged


def test_a_budget_of_cost_limits_the_answer() -> None:
    prices = Prices(input=10.0, output=100.0)

    assert ChatBudget(1_000_000, most_cost=0.01).answer_tokens(400, prices) == 90
    with pytest.raises(BudgetSpent):
        ChatBudget(1_000_000, most_cost=0.01).answer_tokens(4_000, prices)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ChatSettings(), "set CODITECT_CHAT_URL"),
        (ChatSettings(url="http://127.0.0.1:1/v1"), "set CODITECT_CHAT_MODEL"),
        (ChatSettings(url="file:///etc/passwd", model="m"), "such as http"),
        (ChatSettings(url="http://127.0.0.1:1/v1", model="m", key="a\nb"), "CODITECT_CHAT_KEY"),
    ],
)
async def test_wrong_settings_say_what_to_set(settings: ChatSettings, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        async with open_chat(settings):
            pass


def test_settings_are_read_and_never_show_the_key() -> None:
    values = {"CODITECT_CHAT_URL": "http://h/v1", "CODITECT_CHAT_KEY": "sk-secret", "CODITECT_CHAT_SECONDS": "7"}

    found = ChatSettings.read(values)

    assert (found.url, found.key, found.seconds, found.model) == ("http://h/v1", "sk-secret", 7.0, None)
    assert "sk-secret" not in repr(found)
