"""A local chat endpoint that speaks the real protocol, and answers each request with the next part of a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from coditect.settings.settings import ChatSettings

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ChatStub:
    """The endpoint: what it was asked, and what it still says."""

    url: str = ""
    scripts: list[bytes | Script] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)

    def settings(self, **changes: Any) -> ChatSettings:
        defaults: dict[str, Any] = {"url": self.url, "key": "sk-test", "model": "stub-1", "seconds": 20.0}
        return ChatSettings(**(defaults | changes))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-l"))
            self.requests.append(json.loads(await reader.readexactly(length)))
            self.heads.append(head)
            script = self.scripts.pop(0)
            if isinstance(script, bytes):
                writer.write(script)
                await writer.drain()
            else:
                await script(writer)
        except ConnectionError:
            pass  # the client hung up, as it may
        finally:
            writer.close()


@asynccontextmanager
async def chat_stub(*scripts: bytes | Script) -> AsyncIterator[ChatStub]:
    stub = ChatStub(scripts=list(scripts))
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    stub.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        yield stub


def event(part: Any) -> bytes:
    return b"data: " + (part if isinstance(part, str) else json.dumps(part)).encode() + b"\n\n"


def delta(finish: str | None = None, **piece: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "choices": [{"delta": piece, "finish_reason": finish}]}


def usage(prompt: int = 20, completion: int = 5) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def stream(parts: Iterable[Any], *, done: bool = True) -> bytes:
    return STREAM + b"".join(event(part) for part in parts) + (event("[DONE]") if done else b"")


def says(text: str, **counted: int) -> bytes:
    """The answer of a model that only says a text, in two pieces."""
    half = len(text) // 2
    return stream(
        [delta(role="assistant", content=text[:half]), delta(content=text[half:]), delta("stop"), usage(**counted)]
    )


def calls(*wanted: tuple[str, Any]) -> bytes:
    """The answer of a model that wants tools to be called, each with its arguments, in pieces."""
    parts: list[dict[str, Any]] = [delta(role="assistant", content=None)]
    for index, (name, arguments) in enumerate(wanted):
        written = arguments if isinstance(arguments, str) else json.dumps(arguments)
        first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        half = len(written) // 2
        pieces = [{"index": index, "function": {"arguments": piece}} for piece in (written[:half], written[half:])]
        parts += [delta(tool_calls=[piece]) for piece in (first, *pieces)]
    return stream([*parts, delta("tool_calls"), usage()])


def refuses(status: str, body: bytes = b'{"error":{"message":"no"}}', *headers: bytes) -> bytes:
    lines = b"".join(one + b"\r\n" for one in headers)
    return (
        b"HTTP/1.1 "
        + status.encode()
        + b"\r\ncontent-type: application/json\r\nconnection: close\r\n"
        + lines
        + b"content-length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )
