"""The agent whose handlers run in processes of their own; the process loads it from this file."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from coditect import Agent, Context, Retry
from coditect.errors import InvalidTask

worker = Agent("process-worker", slots=2)
ONCE = Retry(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Sum:
    left: int
    right: int


@worker.capability("proc.add", process=True)
def add(numbers: Sum) -> int:
    return numbers.left + numbers.right


@worker.capability("proc.pid", process=True)
async def pid(_: None) -> int:
    return os.getpid()


@worker.capability("proc.fail", process=True, retry=Retry(max_attempts=3, first="100ms", on=(ValueError,)))
def fail(kind: str) -> None:
    if kind == "value":
        raise ValueError("wrong value")
    if kind == "input":
        raise InvalidTask("not like this")
    raise KeyError("wrong key")


@worker.capability("proc.hang", process=True, timeout="1s", retry=ONCE)
def hang(pids: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)


@worker.capability("proc.exit", process=True, retry=Retry(max_attempts=2, first="100ms"))
def leave(_: None) -> None:
    os._exit(3)


@worker.capability("proc.print", process=True)
def talk(words: str) -> str:
    print(words * 1000)
    os.system(f"echo {words}")
    return words


@worker.capability("proc.progress", process=True)
async def progress(_: None, ctx: Context) -> str:
    await ctx.progress(0.5, "half way")
    return ctx.task_id


@worker.capability("proc.folder", process=True)
def folder(_: None, ctx: Context) -> str:
    (ctx.workspace / "note").write_text("here")
    return str(ctx.workspace)


@worker.capability("proc.ask", process=True, retry=ONCE)
async def ask(_: None, ctx: Context) -> None:
    await ctx.request("proc.add", {"left": 1, "right": 2})


@worker.capability("proc.large", process=True, retry=ONCE)
def large(_: None) -> str:
    return "x" * 2_000_000
