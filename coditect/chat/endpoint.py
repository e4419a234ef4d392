"""The adapter for any OpenAI-compatible chat endpoint: `POST <url>/chat/completions`, streamed.

No redirects, so that the key goes to one host; no compression, so that a small answer stays small; no retries, which
are the caller's. The library is httpx2, which has the client and the reader of server-sent events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from coditect.chat.answers import AnswerParts
from coditect.chat.budget import ChatBudget, Prices
from coditect.chat.failures import ChatBroken, ChatRefused, ChatUnavailable
from coditect.chat.port import ChatAnswer, ChatMessage, ChatModel, ChatRequest, ChatRole, discard
from coditect.errors import SetupError, missing_extra
from coditect.settings.chat import ChatSettings
from coditect.wire.json import dumps

try:
    import httpx2
except ImportError as error:
    raise missing_extra("chat") from error

CONNECT_SECONDS = 5.0
LONGEST_EVENT_BYTES = 1024 * 1024
_END = "[DONE]"
MOST_DIGITS = 9
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
            if events.response.num_bytes_downloaded > self._settings.bytes:
                fix = "raise CODITECT_CHAT_BYTES, or ask for less"
                raise ChatBroken("The answer is too large", most_bytes=self._settings.bytes, fix=fix)
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
    timeout = httpx2.Timeout(settings.silence_seconds, connect=CONNECT_SECONDS)
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
        if (after := response.headers.get("retry-after", "")).isdecimal() and len(after) <= MOST_DIGITS:
            facts["retry_after_seconds"] = int(after)
        raise ChatUnavailable("The chat endpoint does not answer now", **facts)
    fix = "check CODITECT_CHAT_URL, CODITECT_CHAT_KEY and CODITECT_CHAT_MODEL"
    raise ChatRefused("The chat endpoint refuses the request", status=status, reason=reason, fix=fix)


def _document(request: ChatRequest, model: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [_message(one) for one in request.messages],
    }
    if request.tools:
        document["tools"] = [
            {
                "type": "function",
                "function": {"name": one.name, "description": one.description, "parameters": one.schema},
            }
            for one in request.tools
        ]
    if request.schema is not None:
        described = {"name": "answer", "schema": request.schema}
        document["response_format"] = {"type": "json_schema", "json_schema": described}
    return document


def _message(message: ChatMessage) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
            for one in message.tool_calls
        ]
    if message.role is ChatRole.TOOL:
        shown["tool_call_id"] = message.answers
    return shown
