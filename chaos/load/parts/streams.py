"""The part of a load whose tasks give their results in parts, which a client reads as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from chaos.history import Note, Type
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.work import MOST_ATTEMPTS
from chaos.load.workflows import COMPLETES, PAUSE_SECONDS, WorkflowLoad
from coditect import Agent, CoditectError, Context, StreamRestarted
from coditect.client.handle import Handle

STREAM = "chaos.stream"
PARTS = 12
"""The number of parts of a result."""
EACH_SECONDS = 0.15


def offer(agent: Agent, note: Note) -> None:
    """Let an agent yield a result in parts, each of which has the name of its execution and its number."""

    @agent.capability(STREAM, timeout="10m", retry=PART_RETRY, description="Yields parts.")
    async def yield_parts(parts: int, ctx: Context) -> AsyncIterator[str]:
        """Yield the parts one after the other."""
        execution = f"{ctx.agent_id}@{asyncio.get_running_loop().time()}"
        async with executed(ctx, note):
            for number in range(parts):
                await asyncio.sleep(EACH_SECONDS)
                yield f"{execution}/{number}"


async def read(load: WorkflowLoad) -> None:
    """Submit one task, and read and record its parts to the end or an error; when they begin again, read on."""
    try:
        handle = await load.client.submit(STREAM, PARTS, stream=True)
    except CoditectError:
        await asyncio.sleep(PAUSE_SECONDS)
        return
    load.accepted(handle.task_id, ends=COMPLETES, most=MOST_ATTEMPTS)
    load.note(Type.INVOKE, "stream", handle.task_id, parts=PARTS)
    while True:
        try:
            await _parts(load, handle)
            break
        except StreamRestarted:
            load.note(Type.OK, "restarted", handle.task_id)
        except CoditectError:  # also where the execution that ended the task is not the one that was read
            load.note(Type.INFO, "stream", handle.task_id)
            load.over(handle.task_id, await _state(load, handle))
            return
    load.note(Type.OK, "stream", handle.task_id)
    load.over(handle.task_id, "completed")


async def _state(load: WorkflowLoad, handle: Handle) -> str | None:
    """Return the state in which the task has ended; None after any error, such as a timeout."""
    try:
        return (await handle.outcome(timeout=load.pace.task_seconds)).status.value
    except CoditectError:
        return None


async def _parts(load: WorkflowLoad, handle: Handle) -> None:
    async for part in handle.stream(str, timeout=load.pace.task_seconds):
        load.note(Type.OK, "given", handle.task_id, part=part)


PART = LoadPart("streams", read, offer)
