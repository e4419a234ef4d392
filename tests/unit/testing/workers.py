"""Agents for the tests of the testing kit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from coditect import Agent, Context, Retry


@dataclass
class Sleepers:
    """An agent whose handler sleeps as long as it is told, and what its executions did."""

    slots: int = 4
    retry: Retry = field(default_factory=Retry)
    timeout: str = "10m"
    """With more, only the control plane can have it done."""
    started: list[str] = field(default_factory=list)
    """Ids of the agents that started one."""
    left: list[str] = field(default_factory=list)
    """Those whose handler ended, however."""

    def __post_init__(self) -> None:
        self.agent = Agent("sleeper", slots=self.slots)
        self.agent.capability("sleep.well", timeout=self.timeout, retry=self.retry)(self.sleep)

    async def sleep(self, seconds: float, ctx: Context) -> str:
        self.started.append(ctx.agent_id)
        if seconds < 0:
            raise ValueError("Nobody sleeps backwards")
        try:
            await asyncio.sleep(seconds)
        finally:
            self.left.append(ctx.agent_id)
        return ctx.agent_id
