"""The part of a load whose tasks have a fleet-wide rate limit, and come in waves that exceed the limit."""

from __future__ import annotations

from chaos.history import Note, Type
from chaos.load.generators import RETRY
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.workflows import WorkflowLoad
from coditect import Agent, Context, Workflow
from coditect.model.limits import Rate

RATED = "chaos.rated"
PER_SECOND, BURST = 4, 4
"""How many executions may begin in a second, and how many more at once."""
WAVE = 12
"""The number of tasks in a wave."""


def offer(agent: Agent, note: Note) -> None:
    """Let an agent offer a capability with a fleet-wide rate limit, and record when each execution begins."""

    @agent.capability(
        RATED,
        timeout="10m",
        retry=PART_RETRY,
        rate=Rate(f"{PER_SECOND}/s", burst=BURST),
        description="Begins as often as its rate allows.",
    )
    async def begin(_: None, ctx: Context) -> None:
        """Record that the execution began, and end at once."""
        note(Type.OK, "begin", RATED, proc=ctx.agent_id, task=ctx.task_id, per_second=PER_SECOND, burst=BURST)
        async with executed(ctx, note):
            return


async def wave(load: WorkflowLoad) -> None:
    """Run one workflow whose tasks could all begin at once, and then leave the agents idle for a while."""
    flow = Workflow("wave")
    for number in range(WAVE):
        flow.task(RATED, name=f"n{number}", priority=load.shapes.priority(), retry=RETRY)
    run = await load.started(flow, priorities={})  # they wait on purpose
    if run is not None:
        await load.end_of(run)
    await load.soon()


PART = LoadPart("rates", wave, offer)
