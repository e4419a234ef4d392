"""An agent with handlers of several kinds, which the servers of a fleet offer to others."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel

from coditect import Agent, Context, Retry


class Pull(BaseModel):
    repo: str
    number: int


class Workers:
    """The agent, and what its handlers have seen."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.ran, self.canceled = 0, False
        self.agent = Agent("worker")
        self.agent.capability("text.count", tags=["text", "quick"])(self.count)
        self.agent.capability("code.review", retry=Retry(max_attempts=1))(self.review)
        self.agent.capability("site.wait")(self.wait)
        self.agent.capability("site.build", timeout="1h")(self.build)
        self.agent.capability("file.hash")(self.hash)

    async def count(self, text: str) -> int:
        """Count letters."""
        self.ran += 1
        return len(text)

    async def review(self, pull: Pull) -> dict[str, Any]:
        """Review a pull request."""
        if pull.number < 0:
            raise ValueError("there is no such pull request")
        return {"repo": pull.repo, "number": pull.number}

    async def wait(self, _: None, ctx: Context) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.canceled = True
            raise
        await ctx.progress(0.5, "half")
        return "done"

    async def build(self, site: str) -> str:
        return f"{site} is built"

    async def hash(self, content: bytes) -> str:
        return str(len(content))
