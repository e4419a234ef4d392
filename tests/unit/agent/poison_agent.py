"""Handlers of suspects. In the test's own process they note their start; elsewhere they do what they are told."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from coditect import Agent, Context, Retry

HOME = "POISON_HOME"
"""The environment variable with the pid of the test's process."""

poison = Agent("poison", slots=4)
THRICE = Retry(max_attempts=3, first="100ms", cap="100ms")


def at_home() -> bool:
    return os.environ.get(HOME) == str(os.getpid())


@poison.capability("poison.do", retry=THRICE)
async def do(value: str, ctx: Context) -> str:
    if at_home() and value.startswith("stay"):
        Path(_file("started")).write_text(value)
        await asyncio.sleep(600)
    if value.endswith("die"):
        os._exit(3)
    return f"{'home' if at_home() else 'apart'} {ctx.attempt}"


def _file(name: str) -> str:
    return str(Path(os.environ["POISON_FOLDER"]) / name)


@poison.capability("poison.ask", retry=THRICE)
async def ask(value: str, ctx: Context) -> list[str]:
    await ctx.progress(0.5, "asks")
    (ctx.workspace / "note").write_text(value)
    answer = await ctx.request("poison.do", value, str)
    return [(ctx.workspace / "note").read_text(), answer, "home" if at_home() else "apart"]


@poison.capability("poison.plain", retry=THRICE)
def plain(value: str, ctx: Context) -> str:
    ctx.report(0.5, "plain")
    return f"{value} {'home' if at_home() else 'apart'}"


@poison.capability("poison.hang", timeout="1s", retry=Retry(max_attempts=1))
def hang(pid: str) -> None:
    Path(pid).write_text(f"{os.getpid()}\n")
    time.sleep(60)


@poison.capability("poison.hang.on")
async def hang_on(pid: str) -> None:
    Path(pid).write_text(f"{os.getpid()}\n")
    await asyncio.sleep(600)


@poison.capability("poison.span")
async def span(log: str) -> None:
    with Path(log).open("a") as lines:
        lines.write("begin\n")
    await asyncio.sleep(0.3)
    with Path(log).open("a") as lines:
        lines.write("end\n")
