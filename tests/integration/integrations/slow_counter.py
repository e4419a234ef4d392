"""An agent for tests that counts letters once a file allows it, and notes each call."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from coditect import Agent

agent = Agent("counter")
FOLDER = Path(os.environ.get("COUNTER_FOLDER", "."))


@agent.capability("slow.count")
async def count(text: str) -> int:
    """Count the letters of a text."""
    with (FOLDER / "calls").open("a") as calls:
        calls.write("call\n")
    while not (FOLDER / "may-end").exists():
        await asyncio.sleep(0.05)
    return len(text)
