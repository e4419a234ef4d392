"""An agent of batches on real servers."""

from __future__ import annotations

import asyncio

from coditect import Agent

batcher = Agent("batcher", slots=101)


@batcher.capability("batch.size", batch=100, within="2s")
async def size(numbers: list[int]) -> list[int]:
    """Tell each task how large its batch was."""
    await asyncio.sleep(0.01)
    return [len(numbers)] * len(numbers)
