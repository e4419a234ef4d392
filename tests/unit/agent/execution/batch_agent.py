"""An agent with a capability of batches, which a process of its own can load."""

from __future__ import annotations

import os

from coditect import Agent, Context, Retry

batcher = Agent("batcher", slots=11)


@batcher.capability("batch.where", batch=10, within="20ms", retry=Retry(max_attempts=1))
async def where(items: list[str], contexts: list[Context]) -> list[list[str]]:
    return [[item, ctx.task_id, str(os.getpid())] for item, ctx in zip(items, contexts, strict=True)]
