"""Agents that hand a ticket off, decline it, and take it over; `coditect agent run` begins the one that is named."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from coditect import Agent, Context

WORK_SECONDS = 3.0


def note(what: str, ctx: Context) -> None:
    line = f"{what} {ctx.task_id} {os.getpid()}\n".encode()
    descriptor = os.open(Path(os.environ["EFFECT_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)  # one write of a short line to an O_APPEND file is atomic
    os.close(descriptor)


asker = Agent("asker")
proud = Agent("proud", slots=16)
billing = Agent("billing", slots=4)


@asker.capability("handoff.answer", timeout="5m")
async def answer(ticket: str, ctx: Context) -> str:
    """Hand the ticket off, under a lock that goes with it, and note that it came back."""
    async with ctx.lock(f"ticket:{ticket}"):
        await ctx.hand_off("handoff.bill", reason="a matter of money", context={"ticket": ticket})
        note("back", ctx)
    return "not handed off"


@asker.capability("handoff.process", timeout="5m", process=True)
async def answer_apart(ticket: str, ctx: Context) -> str:
    """Do the same in a process of its own."""
    await ctx.hand_off("handoff.bill", reason="from a process", context={"ticket": ticket})
    note("back", ctx)
    return "not handed off"


@proud.capability("handoff.bill", timeout="5m")
@billing.capability("handoff.bill", timeout="5m")
async def bill(ticket: str, ctx: Context) -> dict[str, Any]:
    """Work on the ticket for a while, under the same lock, and tell what came with it."""
    async with ctx.lock(f"ticket:{ticket}") as lock:
        note("start", ctx)
        await asyncio.sleep(WORK_SECONDS)
        handoff = await ctx.handoff()
        assert handoff is not None
        note("end", ctx)
        return {"reason": handoff.reason, "context": handoff.context, "fence": ctx.fence, "lock": lock.fence}


@proud.on_handoff
def decide(_: object) -> str:
    """Decline everything."""
    return "not my kind of ticket"
