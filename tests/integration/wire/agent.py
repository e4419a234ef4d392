"""The agent that foreign clients talk to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from coditect import Agent, Context, Retry


class Work(BaseModel):
    """What it takes."""

    model_config = ConfigDict(extra="forbid")

    say: str = "nothing"
    fail: bool = False
    wait: bool = False


class Said(BaseModel):
    """What it gives."""

    said: str
    priority: str


@dataclass(slots=True)
class Echo:
    """Says what it was told. A task that waits goes on when `gate` is set."""

    capability: str
    slots: int = 4
    started: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def agent(self) -> Agent:
        agent = Agent("echo", slots=self.slots)

        @agent.capability(self.capability, timeout="1m", retry=Retry(max_attempts=2, first="100ms", cap="100ms"))
        async def say(work: Work, ctx: Context) -> Said:
            self.started.append(work.say)
            if work.wait:
                await self.gate.wait()
            if work.fail:
                raise ValueError(work.say)
            return Said(said=work.say, priority=ctx.priority.value)

        return agent
