"""An agent with middleware whose handler runs in a process of its own; the process loads it from this file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from coditect import Agent, CallNext, MiddlewareContext

worker = Agent("middle-worker", slots=2)
seen: list[int] = []
"""The process in which the middleware ran."""


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int


@worker.middleware
async def measured(ctx: MiddlewareContext, call_next: CallNext) -> Any:
    seen.append(os.getpid())
    ctx.input = Point(x=len(ctx.input) + 2, y=0) if ctx.input == "tea" else ctx.input
    return await call_next(ctx)


@worker.capability("middle.process", process=True)
def where(point: Point | str) -> list[Any]:
    return [os.getpid(), str(point)]
