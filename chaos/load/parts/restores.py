"""The part of a load whose workflows are restored to checkpoints, while they run and after they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from pydantic import BaseModel

from chaos.history import Note, Type
from chaos.load.generators import RETRY
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.work import UNDO_ATTEMPTS, Flaky
from chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from coditect import Agent, CoditectError, Context, From, Workflow
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import InputError
from coditect.workflow.builder import TaskOptions
from coditect.workflow.definition import Node
from coditect.workflow.states import WorkflowState

STEP, TAKE_BACK = "chaos.step", "chaos.take_back"
"""The capability of a node that may be discarded, and the one that compensates it."""
MARK, LEFT, RIGHT, JOIN, LAST = "mark", "left", "right", "join", "last"
NAMED = "joining"
"""The checkpoint on request that the handler of `join` makes."""
DISCARDS: Mapping[str, tuple[str, ...]] = {MARK: (LEFT, RIGHT, JOIN, LAST), NAMED: (JOIN, LAST)}
"""The nodes that a restore discards, by the checkpoint."""
TRAIL, THERE = "trail", "there"
"""The keys of shared state: what each node made, and what the first node writes and `join` removes."""
MOST_RESTORES = 2


class Step(BaseModel):
    """The input of a node: how long to work, how many of its first attempts fail, and its predecessors' executions."""

    milliseconds: int
    fails: int
    after: list[str] = []


class StepDone(BaseModel):
    """The result of a node, which names the execution that made it."""

    fence: int
    agent: str
    made: str
    """The task's id and the fence of the execution."""


class TakeBack(BaseModel):
    """The input of a compensation: the input and the result of the completed node."""

    input: Step
    result: StepDone


def offer(agent: Agent, note: Note) -> None:
    """Let an agent execute the restorable workflow's nodes, which write to shared state, and their compensations."""

    @agent.capability(STEP, timeout="10m", retry=PART_RETRY, description="Writes to shared state, and waits.")
    async def step(given: Step, ctx: Context) -> StepDone:
        """Note what this node was given and saw in shared state; wait, then add its name to shared state."""
        node, made = ctx.task_id.rpartition(":")[2], f"{ctx.task_id}@{ctx.fence}"
        async with executed(ctx, note, after=given.after):
            if node == JOIN:
                await ctx.checkpoint(NAMED)
            saw = {TRAIL: await ctx.shared.get(TRAIL) or {}, THERE: await ctx.shared.get(THERE)}
            note(Type.OK, "saw", ctx.task_id, proc=ctx.agent_id, fence=ctx.fence, **saw)
            await asyncio.sleep(given.milliseconds / 1000)
            if ctx.attempt <= given.fails:
                raise Flaky(f"attempt {ctx.attempt} of {given.fails} that fail")
            if node == MARK:
                await ctx.shared.put(THERE, made)
            elif node == JOIN:
                await ctx.shared.delete(THERE)
            await ctx.shared.merge(TRAIL, {node: made})
        return StepDone(fence=ctx.fence, agent=ctx.agent_id, made=made)

    few = replace(PART_RETRY, max_attempts=UNDO_ATTEMPTS)

    @agent.capability(TAKE_BACK, timeout="10m", retry=few, description="Takes back.")
    async def take_back(done: TakeBack, ctx: Context) -> StepDone:
        """Compensate a node: record which execution is undone, and wait as long as that execution was to work."""
        async with executed(ctx, note, after=[done.result.made]):
            await asyncio.sleep(done.input.milliseconds / 1000)
        return StepDone(fence=ctx.fence, agent=ctx.agent_id, made=f"{ctx.task_id}@{ctx.fence}")


def restorable(load: WorkflowLoad) -> Workflow:
    """Return a workflow of a node, two parallel ones after it, and two in a row; three of them have compensations."""
    flow = Workflow("restorable")

    def step(name: str, *after: Node, undone: bool = False) -> Node:
        given = load.shapes.work() | {"after": [From(f"results.{before.name}.made") for before in after]}
        options = TaskOptions(name=name, after=list(after), retry=RETRY)
        return flow.task(STEP, given, **(options | {"compensate": TAKE_BACK} if undone else options))

    mark = step(MARK)
    join = step(JOIN, step(LEFT, mark, undone=True), step(RIGHT, mark, undone=True))
    step(LAST, join, undone=True)
    return flow


async def restore(load: WorkflowLoad) -> None:
    """Run a workflow, and restore it to one of its checkpoints once or twice, while it runs or after its end."""
    discards = {name: [*nodes] for name, nodes in DISCARDS.items()}
    run = await load.started(restorable(load), discards=discards, priorities={}, inputs={}, undo=[])
    if run is None:
        return
    for _ in range(load.random.randint(1, MOST_RESTORES)):
        await load.soon()
        if not await _restored(load, run, load.random.choice(sorted(DISCARDS))):
            break
    await load.end_of(run)


async def _restored(load: WorkflowLoad, run: WorkflowRun, checkpoint: str) -> bool:
    """Plan and request a restore until one is made; return False if the workflow ended without completing."""
    while True:
        try:
            plan = await run.plan_restore(checkpoint)
        except CoditectError:
            state = await load.answered(run.state)
            if state.terminal and state is not WorkflowState.COMPLETED:
                return False
            await asyncio.sleep(PAUSE_SECONDS)
            continue
        by = load.key()
        said = {
            "named": [row.node for row in plan.nodes],
            "undone": [row.node for row in plan.nodes if row.compensated],
        }
        load.note(Type.INVOKE, "restore", run.id, by=by, checkpoint=checkpoint, **said)
        try:
            await run.restore(plan, by=by)
        except InputError:
            load.note(Type.FAIL, "restore", run.id, by=by)
        except CoditectError:
            load.note(Type.INFO, "restore", run.id, by=by)
        else:
            load.note(Type.OK, "restore", run.id, by=by)
            return True
        if any(row.by == by for row in await load.answered(run.restores)):
            return True


PART = LoadPart("restores", restore, offer)
