"""An agent of bytes, with handlers of every kind; its processes load it from this file."""

from __future__ import annotations

from typing import cast

from coditect import Agent, Context, Retry

packer = Agent("packer", slots=4)
ONCE = Retry(max_attempts=1)


@packer.capability("bytes.loop", retry=ONCE)
async def on_loop(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.thread", retry=ONCE)
def in_thread(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.process", process=True, retry=ONCE)
def in_process(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.size", retry=ONCE)
async def size(data: bytes) -> int:
    return len(data)


@packer.capability("bytes.make", retry=ONCE)
async def make(size: int) -> bytes:
    return bytes([255]) * size


@packer.capability("bytes.wrong", retry=ONCE)
async def wrong(_: None) -> bytes:
    return cast("bytes", "text")


@packer.capability("bytes.ask", retry=ONCE)
async def ask(data: bytes, ctx: Context) -> bytes:
    return await ctx.request("bytes.loop", data, bytes)


@packer.capability("bytes.ask.process", process=True, retry=ONCE)
async def ask_in_process(data: bytes, ctx: Context) -> bytes:
    answer = await ctx.request("bytes.loop", data)
    assert isinstance(answer, bytes)
    return answer
