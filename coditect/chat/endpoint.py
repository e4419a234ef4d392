"""The adapter for any OpenAI-compatible chat endpoint: `POST <url>/chat/completions`, streamed.

No redirects, so that the key goes to one host; no compression, so that a small answer stays small; no retries, which
are the caller's. The library is httpx2, which has the client and the reader of server-sent events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from coditect.chat.port import (
    BYTES_PER_TOKEN,
    MOST_BYTES_PER_TOKEN,
    ChatAnswer,
    ChatBroken,
    ChatBudget,
    ChatMessage,
    ChatModel,
    ChatRefused,
    ChatRequest,
    ChatRole,
    ChatUnavailable,
    Prices,
    TokenUsage,
    ToolCall,
    discard,
)
from coditect.errors import SetupError, missing_extra
from coditect.settings.settings import ChatSettings
from coditect.wire.json import dumps

MOST_CALLS = 64
"""The largest number of tool calls in one answer."""
_Text = Annotated[str, BeforeValidator(lambda text: "" if text is None else text)]
_LONGEST_REASON = 300


def _listed(value: Any) -> Any:
    return [] if value is None else value


class _Function(BaseModel):
    name: _Text = ""
    arguments: _Text = ""


class _CallPiece(BaseModel):
    index: int = Field(0, ge=0, lt=MOST_CALLS)
    id: _Text = ""
    function: _Function = _Function()


class _Delta(BaseModel):
    content: _Text = ""
    refusal: _Text = ""
    tool_calls: Annotated[list[_CallPiece], BeforeValidator(_listed)] = []


class _Choice(BaseModel):
    delta: _Delta = _Delta()
    finish_reason: _Text = ""


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0, le=10**9)
    completion_tokens: int = Field(0, ge=0, le=10**9)


class _AnswerPart(BaseModel):
    choices: Annotated[list[_Choice], BeforeValidator(_listed)] = []
    usage: _Usage | None = None
    error: Any = None


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class AnswerParts:
    """The parts of one streamed answer that have arrived so far."""

    request_bytes: int
    began: bool = False
    """Whether the endpoint took the request, so that it costs something."""
    _texts: list[str] = field(default_factory=list)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _finish: str = ""
    _refusal: str = ""
    _reported_usage: TokenUsage | None = None
    _answer_bytes: int = 0

    @property
    def usage(self) -> TokenUsage:
        """The numbers of input and output tokens, as the endpoint reports them; without a report, estimates.

        A report is raised to at least one token for 16 bytes; an estimate is one token for 4 bytes.
        """
        asked, answered = self.request_bytes, self._answer_bytes
        if self._reported_usage is None:
            return TokenUsage(asked // BYTES_PER_TOKEN, answered // BYTES_PER_TOKEN)
        least = TokenUsage(asked // MOST_BYTES_PER_TOKEN, answered // MOST_BYTES_PER_TOKEN)
        return TokenUsage(max(self._reported_usage.input, least.input), max(self._reported_usage.output, least.output))

    @property
    def least_tokens(self) -> int:
        """The least number of tokens that the answer so far can have: one for every whole 16 bytes."""
        return self._answer_bytes // MOST_BYTES_PER_TOKEN

    def add(self, data: str) -> str:
        """Add a part of the stream, given as JSON, and return its piece of the answer's text, which may be empty.

        Raises:
            ChatBroken: when it is no part of an answer.
            ChatUnavailable: when it is the endpoint's report of an error.
        """
        try:
            part = _AnswerPart.model_validate_json(data)
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:3])
            reason = "; ".join(problems)
            raise ChatBroken("A part of the answer does not follow the protocol", reason=reason) from error
        if part.error is not None:
            raise ChatUnavailable("The endpoint broke the answer off", reason=str(part.error)[:_LONGEST_REASON])
        if part.usage is not None:
            self._reported_usage = TokenUsage(part.usage.prompt_tokens, part.usage.completion_tokens)
        text = ""
        for choice in part.choices[:1]:
            text = choice.delta.content
            self._finish = choice.finish_reason or self._finish
            self._refusal = (self._refusal + choice.delta.refusal)[:_LONGEST_REASON]
            self._texts.append(text)
            self._answer_bytes += len(text.encode(errors="replace"))
            for piece in choice.delta.tool_calls:
                self._add_call(piece)
        return text

    def _add_call(self, piece: _CallPiece) -> None:
        call = self._calls.setdefault(piece.index, _Call())
        call.id, call.name = call.id or piece.id, call.name or piece.function.name
        call.arguments += piece.function.arguments
        self._answer_bytes += len(piece.function.arguments.encode(errors="replace"))

    def whole(self) -> ChatAnswer:
        """Return the answer of all parts together, or raise ChatBroken if it is cut off, withheld, refused or empty.

        Raises:
            ChatBroken: when the stream ended too early, at the limit of tokens, or by a filter, or says nothing.
        """
        match self._finish:
            case "":
                raise ChatBroken("The answer ended before its end", fix="ask again")
            case "length":
                raise ChatBroken("The answer reached its limit of tokens", tokens=self.usage.output, fix="allow more")
            case "content_filter":
                raise ChatBroken("The endpoint's filter withheld the answer", fix="ask in other words")
        calls = [self._calls[index] for index in sorted(self._calls)]
        found = tuple(ToolCall(call.id or f"call-{at}", call.name, call.arguments) for at, call in enumerate(calls))
        text = "".join(self._texts)
        if self._refusal:
            raise ChatBroken("The model refuses to answer", reason=self._refusal, fix="ask in other words")
        if not text and not found:
            raise ChatBroken("The answer is empty", fix="ask again")
        return ChatAnswer(text, found, self.usage)


try:
    import httpx2
except ImportError as error:
    raise missing_extra("chat") from error

CHAT_CONNECT_SECONDS = 5.0
SILENT_PART = 4
"""The part of the time for an answer that a pause within it may take: a quarter."""
LONGEST_EVENT_BYTES = 1024 * 1024
_END = "[DONE]"
MAX_RETRY_AFTER_DIGITS = 9
_REASON_BYTES = 2_000
_AGAIN_STATUS = frozenset({408, 409, 425, 429})


class ChatEndpoint:
    """A language model behind an OpenAI-compatible endpoint."""

    def __init__(self, client: httpx2.AsyncClient, settings: ChatSettings, *, url: str, model: str) -> None:
        self._client = client
        self._settings = settings
        self._url = url
        self._model = model
        self._prices = Prices(settings.input_price, settings.output_price)

    async def ask(
        self, request: ChatRequest, budget: ChatBudget, *, on_text: Callable[[str], None] = discard
    ) -> ChatAnswer:
        """Send a request and return the complete answer; see `ChatModel.ask`."""
        document = _document(request, request.model or self._model)
        most_tokens = budget.answer_tokens(len(dumps(document)), self._prices)
        body = dumps(document | {"max_completion_tokens": most_tokens})
        parts = AnswerParts(len(body))
        try:
            async with asyncio.timeout(self._settings.seconds):
                async with self._sent(body) as events:
                    await self._read(events, parts, budget, most_tokens=most_tokens, on_text=on_text)
        except TimeoutError as error:
            seconds = self._settings.seconds
            raise ChatUnavailable("The endpoint did not answer in time", seconds=seconds, reason="timeout") from error
        except httpx2.SSEError as error:
            raise ChatBroken("The answer is no stream of events", reason=str(error)[:300]) from error
        except httpx2.HTTPError as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            raise ChatUnavailable("The chat endpoint cannot be reached", url=self._url, reason=reason) from error
        finally:
            if parts.began:
                budget.count(parts.usage, self._prices)
        return parts.whole()

    async def _read(
        self,
        events: httpx2.EventSource,
        parts: AnswerParts,
        budget: ChatBudget,
        *,
        most_tokens: int,
        on_text: Callable[[str], None],
    ) -> None:
        parts.began = True
        async for event in events:
            if events.response.num_bytes_downloaded > self._settings.max_bytes:
                raise ChatBroken("The answer is too large", max_bytes=self._settings.max_bytes, fix="ask for less")
            if event.data.strip() == _END:
                return
            if text := parts.add(event.data):
                on_text(text)
            if parts.least_tokens > most_tokens:
                raise budget.spent()

    @asynccontextmanager
    async def _sent(self, body: bytes) -> AsyncIterator[httpx2.EventSource]:
        async with self._client.sse(
            self._url, method="POST", content=body, max_event_size=LONGEST_EVENT_BYTES
        ) as events:
            if events.response.status_code != 200:
                await _refuse(events.response)
            if events.response.headers.get("content-encoding", "identity") != "identity":
                raise ChatBroken("The answer is compressed, which the request does not accept")
            yield events


@asynccontextmanager
async def open_chat(settings: ChatSettings) -> AsyncIterator[ChatModel]:
    """Yield the model behind the chat endpoint of the settings for the block; opening it sends nothing.

    Raises:
        SetupError: when the settings name no endpoint or no model, or the URL is none.
    """
    url, model = _checked(settings)
    headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "coditect"}
    if settings.key:
        headers["authorization"] = f"Bearer {settings.key}"
    timeout = httpx2.Timeout(settings.seconds / SILENT_PART, connect=CHAT_CONNECT_SECONDS)
    async with httpx2.AsyncClient(headers=headers, timeout=timeout, follow_redirects=False) as client:
        yield ChatEndpoint(client, settings, url=url, model=model)


def _checked(settings: ChatSettings) -> tuple[str, str]:
    """Check the chat settings, and return the URL for completions and the name of the model."""
    if settings.url is None or settings.model is None:
        missing = "CODITECT_CHAT_URL" if settings.url is None else "CODITECT_CHAT_MODEL"
        raise SetupError("No chat endpoint is set", missing=missing, fix=f"set {missing}")
    parts = urlsplit(settings.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SetupError(
            "This is no URL of a chat endpoint", variable="CODITECT_CHAT_URL", fix="such as http://host/v1"
        )
    if settings.key and not (settings.key.isascii() and settings.key.isprintable()):
        raise SetupError("This is no API key", variable="CODITECT_CHAT_KEY", fix="printable ASCII, without line ends")
    return settings.url.rstrip("/") + "/chat/completions", settings.model


async def _refuse(response: httpx2.Response) -> None:
    """Raise the error for an HTTP status other than 200: ChatUnavailable for a temporary fault, else ChatRefused."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > _REASON_BYTES:
            break
    status, reason = response.status_code, body[:_REASON_BYTES].decode(errors="replace")[:300]
    if status in _AGAIN_STATUS or status >= 500:
        facts: dict[str, object] = {"status": status, "reason": reason}
        if (after := response.headers.get("retry-after", "")).isdecimal() and len(after) <= MAX_RETRY_AFTER_DIGITS:
            facts["retry_after_seconds"] = int(after)
        raise ChatUnavailable("The chat endpoint does not answer now", **facts)
    fix = "check CODITECT_CHAT_URL, CODITECT_CHAT_KEY and CODITECT_CHAT_MODEL"
    raise ChatRefused("The chat endpoint refuses the request", status=status, reason=reason, fix=fix)


def _document(request: ChatRequest, model: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [_message(message) for message in request.messages],
    }
    if request.tools:
        document["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema},
            }
            for tool in request.tools
        ]
    if request.schema is not None:
        described = {"name": "answer", "schema": request.schema}
        document["response_format"] = {"type": "json_schema", "json_schema": described}
    return document


def _message(message: ChatMessage) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role is ChatRole.TOOL:
        shown["tool_call_id"] = message.answers
    return shown
