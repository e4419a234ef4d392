"""An agent for workflow tasks."""

from __future__ import annotations

import asyncio
from typing import Any

from coditect import Agent, Context, Retry
from coditect.model.result import Failure
from coditect.wire.tasks import OutcomeReport
from tests.owner import ScriptedOwner
from tests.support import eventually
from tests.unit.agent.scene import Scene


class Works:
    """An agent whose handler tells what it was given, and ends as its input says."""

    def __init__(self, *, slots: int = 4, timeout: str = "5m") -> None:
        self.runs: list[tuple[Any, int, int]] = []
        self.fences_after: list[int] = []
        """What the handlers that waited saw at their end."""
        self.gate = asyncio.Event()
        self.agent = Agent("works", slots=slots)
        self.kind: type[Exception] = ValueError

        @self.agent.capability(
            "work.do", timeout=timeout, retry=Retry(max_attempts=5, on=(ValueError, ArithmeticError))
        )
        async def do(wanted: Any, ctx: Context) -> Any:
            self.runs.append((wanted, ctx.fence, ctx.attempt))
            if wanted in ("wait", "fail later"):
                await self.gate.wait()
                self.fences_after.append(ctx.fence)
            if wanted == "tell":
                await ctx.progress(0.5, "half")
                await ctx.progress(2.0, "nearly")
                await self.gate.wait()
            if wanted in ("fail", "fail later"):
                raise self.kind("on purpose")
            return wanted


async def reported(owner: ScriptedOwner) -> OutcomeReport:
    """The first report of how a task ended."""
    await eventually(lambda: owner.results)
    return owner.results[0]


async def failure_reported(owner: ScriptedOwner) -> Failure:
    """How the first task failed that was reported."""
    failure = (await reported(owner)).outcome.failure
    assert failure is not None
    return failure


async def returned(scene: Scene, works: Works, owner: ScriptedOwner, **how: Any) -> None:
    """A task in the queue that somebody had and gave back."""
    broker = await scene.broker()
    await (await scene.start(works.agent)).stop()
    await owner.publish("work.do", **how)
    delivery = await broker.get("tasks.work.do.p1")
    assert delivery is not None
    delivery.requeue()
