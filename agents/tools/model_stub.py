"""A local stand-in for a language model: an endpoint that speaks OpenAI's chat completions, with answers by a function.

For demos and measurements without a model and without a network. It streams as the real ones do.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_READ_WITHIN_SECONDS = 30


@dataclass(frozen=True, slots=True)
class StubAnswer:
    """An answer of the stand-in: a text, or the call of a tool with its arguments."""

    text: str = ""
    tool: str = ""
    arguments: Mapping[str, Any] | None = None


Answering = Callable[[Sequence[Mapping[str, Any]]], StubAnswer]
"""Returns the answer to the messages of a conversation."""


@asynccontextmanager
async def model_stub(answering: Answering, *, seconds: float = 0.0) -> AsyncIterator[str]:
    """Serve the stand-in on a free port of this machine while the block runs, and yield its base URL.

    Each answer comes `seconds` after its request.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_WITHIN_SECONDS):
                messages = await _read(reader)
            await asyncio.sleep(seconds)
            writer.write(_HEAD + b"".join(map(_event, _parts(answering(messages)))) + b"data: [DONE]\n\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client hung up, as it may
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def _read(reader: asyncio.StreamReader) -> list[dict[str, Any]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(int(line.partition(":")[2]) for line in head.splitlines() if line.startswith("content-length:"))
    messages: list[dict[str, Any]] = json.loads(await reader.readexactly(length))["messages"]
    return messages


def _parts(answer: StubAnswer) -> list[dict[str, Any]]:
    delta: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.tool:
        call = {"name": answer.tool, "arguments": json.dumps(answer.arguments)}
        delta["tool_calls"] = [{"index": 0, "id": "call-1", "type": "function", "function": call}]
    finish = "tool_calls" if answer.tool else "stop"
    return [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 1 + len(answer.text) // 4}},
    ]


def _event(part: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(part).encode() + b"\n\n"
